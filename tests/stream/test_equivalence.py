"""Every way to read a job shows the same: poll, wait, SSE in both formats, live and late."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import ParsedMessage, RawMessageStreamEvent
from pydantic import TypeAdapter

from shared.store.runtime import Runtime
from simulator.app import Simulator, running
from simulator.words import SAMPLES
from tests.stream.conftest import Follow
from tests.support.follower import Follower, ask
from tests.support.served import Served
from tests.support.sse_frames import Frame
from tests.support.story import assert_saw
from tests.support.working import working

_EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
_THEIRS = frozenset(
    {
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    }
)


@pytest.fixture
async def upstream(served: Served) -> AsyncIterator[Simulator]:
    """A simulator, and a worker that calls it."""
    async with (
        running() as simulator,
        working(served.api.settings.redis_url, simulator.url, upstream_retry_base_s=0.001),
    ):
        yield simulator


def _rebuilt(frames: list[Frame]) -> dict[str, Any]:
    """The message that the official SDK builds from the events of the last attempt."""
    snapshot: ParsedMessage[None] | None = None
    json_bufs: dict[int, bytes] = {}
    for frame in frames:
        if frame.event == "reset":
            snapshot = None
            json_bufs.clear()
        if frame.event in _THEIRS:
            snapshot = accumulate_event(
                event=_EVENT.validate_json(frame.data),
                current_snapshot=snapshot,
                json_bufs=json_bufs,
                output_format=_NONE,
            )
    assert snapshot is not None
    return _plain(snapshot.model_dump(mode="json"))


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """Removes what the SDK's models add: None for absent optional members."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(part) for key, part in value.items() if part is not None and key != "parsed_output"}
        return [clean(part) for part in value] if isinstance(value, list) else value

    found: dict[str, Any] = clean(message)
    return found


_NONE: Any = anthropic.NOT_GIVEN

_PLAIN = ["tokens=30", "tokens=1", "tokens=200 gap-ms=0", "tokens=30 slice=7", "tokens=12 crlf=1", "stop=max_tokens"]
_RICH = [
    "blocks=thinking+text+tool",
    "blocks=text+tool+text",
    "blocks=citations",
    "stop=refusal",
    "unknown-event=3",
    "garbage=3",
]
_RETRIED = ["tokens=9 error=4x1,type=overloaded_error", "tokens=9 fin=4x2", "fail=529x1", "tokens=9 end=stopx1"]
_BREAKING = [f"tokens={len(pieces)} text={name}" for name, pieces in SAMPLES.items() if name != "surrogate"]


@pytest.mark.parametrize("words", [*_PLAIN, *_RICH, *_RETRIED, *_BREAKING])
async def test_all_ways_to_read_a_job_agree(
    upstream: Simulator, served: Served, runtime: Runtime, follower_of: Follow, words: str
) -> None:
    """Texts and messages are equal; the result is the last attempt's stream."""
    model = "sim-t20-g1-f1"
    status, job, _ = await ask(
        served.url, "/v1/jobs", method="POST", body={"prompt": f"nonce=n1 {words}", "model": model}
    )
    assert status == 202
    live = [follower_of(job["id"], form=form) for form in ("text", "messages")]
    await asyncio.gather(*[follower.follow() for follower in live])
    late = [follower_of(job["id"], form=form) for form in ("text", "messages")]
    await asyncio.gather(*[follower.follow() for follower in late])
    _, polled, _ = await ask(served.url, f"/v1/jobs/{job['id']}")
    _, waited, _ = await ask(served.url, f"/v1/jobs/{job['id']}?wait=5")
    assert polled == waited
    assert polled["status"] == "succeeded"
    result = polled["result"]
    log = await runtime.log.read(job["id"])
    for follower in (*live, *late):
        assert_saw(follower, log)
        assert json.loads(follower.frames[-1].data) == polled
        assert follower.text == result["text"]
    for follower in (live[1], late[1]):
        assert _rebuilt(follower.frames) == _plain(result["message"])
    texts = [block["text"] for block in result["message"]["content"] if block["type"] == "text"]
    assert "".join(texts) == result["text"]
    assert result["stop_reason"] == result["message"]["stop_reason"]
    assert polled["usage"]["output_tokens"] == result["message"]["usage"]["output_tokens"]
    assert polled["attempts"] == len(upstream.calls)
    if "text=" in words:
        assert result["text"] == "".join(SAMPLES[words.partition("text=")[2]])
    else:
        assert _calls_in(result["text"]) <= {len(upstream.calls)}


def _calls_in(text: str) -> set[int]:
    return {int(piece.split(".")[1]) for piece in text.split() if piece.startswith("n1.")}


@pytest.mark.parametrize(
    "words", ["fail=400", "tokens=9 error=4,type=overloaded_error", "tokens=9 fin=3", "bad-json=3", "text=surrogate"]
)
async def test_all_ways_to_read_a_failure_agree(
    upstream: Simulator, served: Served, runtime: Runtime, follower_of: Follow, words: str
) -> None:
    """The error is the same everywhere, and no stream looks like an answer."""
    _, job, _ = await ask(
        served.url,
        "/v1/jobs",
        method="POST",
        body={"prompt": f"nonce=n1 {words}", "model": "sim-t20-g1-f1", "job": {"max_attempts": 2}},
    )
    followers = [follower_of(job["id"], form=form) for form in ("text", "messages")]
    await asyncio.gather(*[follower.follow() for follower in followers])
    _, polled, _ = await ask(served.url, f"/v1/jobs/{job['id']}")
    del polled["partial"]  # which followers have seen
    log = await runtime.log.read(job["id"])
    for follower in followers:
        assert_saw(follower, log)
        assert follower.frames[-1].event == polled["status"] == "failed"
        assert json.loads(follower.frames[-1].data) == polled
    assert polled["result"] is None
    assert polled["error"]["code"].startswith("upstream_")


async def test_a_hundred_jobs_at_once_never_mix(upstream: Simulator, served: Served, runtime: Runtime) -> None:
    """Each token carries its job's name: every follower sees only its own, some of them after failed attempts."""
    faults = ("", "error=5x1,type=overloaded_error", "fin=7x1", "fail=529x1", "rst=head")

    async def one(number: int) -> tuple[Follower, dict[str, Any]]:
        fault = faults[number % len(faults)] if number % 3 == 0 else ""
        fault = fault if fault != "rst=head" else "rst=headx1"
        prompt = f"nonce=job-{number} tokens=20 gap-ms=1 {fault}"
        _, job, _ = await ask(served.url, "/v1/jobs", method="POST", body={"prompt": prompt, "model": "sim-t20-g1-f1"})
        follower = Follower([served.url], job["id"], form=("text", "messages")[number % 2])
        await follower.follow()
        return follower, json.loads(follower.frames[-1].data)

    for number, (follower, job) in enumerate(await asyncio.gather(*[one(number) for number in range(100)])):
        assert_saw(follower, await runtime.log.read(job["id"]))
        assert job["status"] == "succeeded"
        call = job["attempts"]
        assert job["result"]["text"] == "".join(f"job-{number}.{call}.{token} " for token in range(20))
        assert follower.text == job["result"]["text"]
