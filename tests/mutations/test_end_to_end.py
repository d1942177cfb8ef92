"""A sample over real sockets: a worker, the API, a real Redis, and the official SDK as the client."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import anthropic
import httpx2
import msgspec
import pytest

from shared.job import JobState
from tests.mutations.campaign import text_of
from tests.mutations.case import Case, a_case
from tests.mutations.frame import Dialect, End, Response, Stream
from tests.mutations.frame_mutation import gaps
from tests.mutations.messages_seed import messages_stream
from tests.mutations.oracle import Expected, Verdict, expected_of
from tests.mutations.test_mutations import FIXED_SEED
from tests.mutations.worker_under_test import RawUpstream
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving
from tests.support.working import working

TENANT = "default"
MODELS = {Dialect.MESSAGES: "asked", Dialect.CHAT: "asked-by-chat"}
ROUTES = {"asked-by-chat": {"provider": "openai", "model": "asked"}}


def what_breaks_sdks() -> list[Stream]:
    """Streams that break the official SDKs if passed on unchanged: gaps in the indices, a message without content."""
    found = []
    for number, mutation in enumerate((gaps, _without_content, _with_null_content)):
        rng = random.Random(number)
        stream = messages_stream(rng)
        while not mutation(stream, rng):
            stream = messages_stream(rng)
        found.append(replace(stream, response=Response()))
    return found


def _without_content(stream: Stream, _: random.Random) -> bool:
    del stream.frames[0].json["message"]["content"]
    return len(expected_of(stream).blocks) > 1


def _with_null_content(stream: Stream, _: random.Random) -> bool:
    stream.frames[0].json["message"]["content"] = None
    return len(expected_of(stream).blocks) > 1


def sample(verdict: Verdict, count: int) -> list[Stream]:
    """The first ``count`` of the fixed campaign, without silences, because time is real here."""
    return list(itertools.islice(_streams(verdict), count))


def _streams(verdict: Verdict) -> Iterator[Stream]:
    for number in itertools.count():
        case = a_case(FIXED_SEED, number)
        stream = case.stream()
        expected = expected_of(stream)
        is_quick = stream.end is not End.HELD and not any(frame.pause_s for frame in stream.frames)
        is_habit = all(doubt.is_habit for doubt in expected.doubts)
        if expected.verdict is verdict and case.steps and is_quick and is_habit and not _is_refusal(case):
            yield replace(stream, response=stream.response or Response())


def _is_refusal(case: Case) -> bool:
    response = case.stream().response
    return response is not None and response.status != 200


@contextmanager
def shown(stream: Stream) -> Iterator[None]:
    """Adds the stream to a failure inside the block."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{error!r} for\n{text_of(stream)}") from error


@dataclass
class World:
    """The worker, the API, the upstream and the clients."""

    served: Served
    client: anthropic.AsyncAnthropic

    async def ask(self, stream: Stream) -> tuple[Any, str]:
        """The message that the SDK builds, and the job's id."""
        RawUpstream.script, RawUpstream.requests = stream, 0
        async with (
            asyncio.timeout(10),
            self.client.messages.stream(
                model=MODELS[stream.dialect], max_tokens=16, messages=[{"role": "user", "content": "Say hello."}]
            ) as answer,
        ):
            async for event in answer:
                assert event.type
            message = await answer.get_final_message()
            return message, answer.response.headers["x-job-id"]

    async def heard(self, job_id: str, form: str) -> list[tuple[str, dict[str, Any]]]:
        """The events that a follower of the job gets from the start."""
        async with httpx2.AsyncClient() as client:
            reply = await client.get(f"{self.served.url}/v1/jobs/{job_id}/events", params={"format": form})
        frames = [dict(line.split(": ", 1) for line in part.split("\n")) for part in reply.text.strip().split("\n\n")]
        return [(frame["event"], msgspec.json.decode(frame["data"])) for frame in frames if "event" in frame]


@pytest.fixture
async def world(real_redis: RedisUnderTest) -> AsyncIterator[World]:
    server = await asyncio.get_running_loop().create_server(RawUpstream, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings: dict[str, Any] = {"routes": ROUTES}
    upstreams = {"openai_base_url": f"{url}/v1", "openai_api_key": "made-up"}
    async with (
        serving(real_redis.url, **settings) as served,
        working(real_redis.url, url, upstream_retry_base_s=0.01, idle_check_s=0, **upstreams, **settings),
        anthropic.AsyncAnthropic(base_url=served.url, api_key="any", max_retries=0) as client,
    ):
        yield World(served, client)
    server.close()
    await server.wait_closed()


# The SDK takes what is not of its type, and says so when it is written out again.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_forty_five_certain_answers_reach_the_sdk_and_every_follower_by_one_call(world: World) -> None:
    for stream in [*what_breaks_sdks(), *sample(Verdict.CERTAIN, 42)]:
        expected = expected_of(stream)
        with shown(stream):
            message, job_id = await world.ask(stream)
            assert RawUpstream.requests == 1
            assert _said_by(message.model_dump(warnings=False), stream) == _wanted(expected, stream)
            assert message.stop_reason == expected.stop_reason
            await _is_the_same_for_all(world, job_id, expected)


async def _is_the_same_for_all(world: World, job_id: str, expected: Expected) -> None:
    """The job's result and both kinds of followers have the same answer."""
    job = await world.served.api.runtime.jobs.get(job_id, TENANT, with_result=True)
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    text = "".join(block["text"] for block in expected.blocks if block["type"] == "text")
    assert msgspec.json.decode(bytes(job.result))["text"] == text
    assert "".join(data["text"] for name, data in await world.heard(job_id, "text") if name == "delta") == text
    deltas = [data["delta"] for name, data in await world.heard(job_id, "messages") if name == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas if delta.get("type") == "text_delta") == text


# The SDK takes what is not of its type, and says so when it is written out again.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_fifteen_doubtful_answers_are_errors_to_the_sdk_and_close_the_model_to_nobody(world: World) -> None:
    """They are habits of the server: after each one a good answer succeeds."""
    good = {stream.dialect: stream for stream in sample(Verdict.CERTAIN, 20)}
    for stream in sample(Verdict.DOUBTFUL, 15):
        with shown(stream):
            with pytest.raises(anthropic.APIStatusError):
                await world.ask(stream)
            await world.ask(good[stream.dialect])


def _wanted(expected: Expected, stream: Stream) -> list[dict[str, Any]]:
    return _folded(expected.blocks) if stream.dialect is Dialect.CHAT else expected.blocks


def _said_by(message: dict[str, Any], stream: Stream) -> list[dict[str, Any]]:
    """The SDK's blocks in the oracle's form."""
    found = []
    for block in message["content"]:
        kind = block["type"]
        if kind in ("text", "thinking"):
            found += [{"type": kind, kind: block[kind]}] if block[kind] else []
        elif kind in ("tool_use", "server_tool_use"):
            found.append({"type": kind, "name": block["name"], "input": block["input"]})
        else:
            found.append({"type": kind})
    return _folded(found) if stream.dialect is Dialect.CHAT else found


def _folded(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    said = {
        kind: "".join(block.get(kind, "") for block in blocks if block["type"] == kind) for kind in ("thinking", "text")
    }
    folded = [{"type": kind, kind: joined} for kind, joined in said.items() if joined]
    return folded + [block for block in blocks if block["type"] not in ("thinking", "text")]
