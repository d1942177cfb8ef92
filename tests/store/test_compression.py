"""Large requests and results take less of Redis, and every reader gets them as they were written."""

import random
from typing import Final

import msgspec
import pytest

from shared.errors import JobError
from shared.job import Step
from shared.store import redis_keys
from shared.store.compression import restored, stored
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from tests.conftest import StartRuntime
from tests.support.builders import A_REQUEST, a_line, a_webhook, an_answer
from tests.support.store import append, claim_one, finish, job_of, start, start_batch, submit

_WORDS: Final = random.Random(7)
_FRAME: Final = b"\x28\xb5\x2f\xfd"


def _text(size: int) -> bytes:
    """JSON with words, which shrinks to about a half."""
    words = ["".join(_WORDS.choices("etaoinshrdlu", k=_WORDS.randrange(1, 9))) for _ in range(size // 4 + 1)]
    return msgspec.json.encode({"messages": [{"role": "user", "content": " ".join(words)[:size]}]})


@pytest.mark.parametrize("size", [0, 1, 1_024, 1_025, 5_000, 300_000, 3_000_000])
async def test_what_is_stored_is_restored(size: int) -> None:
    """In one step up to 256 KiB, in a thread above."""
    content = _text(size)
    kept = await stored(content, 1_024)
    assert kept.startswith(_FRAME) is (len(content) > 1_024)
    assert len(kept) <= len(content)
    assert await restored(kept) == content


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 100_000, b'"' + b"x" * 3_000_000 + b'"', random.Random(1).randbytes(5_000)],
    ids=["empty", "zeros", "one letter", "noise"],
)
async def test_what_shrinks_too_far_or_not_at_all_is_kept_as_it_is(content: bytes) -> None:
    """A page of results is cut by what they take in Redis: none may be a thousand times as large in memory."""
    assert await stored(content, 1_024) == content
    assert await restored(content) == content


async def test_a_damaged_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="damaged"):
        await restored((await stored(_text(5_000), 1_024))[:-10])


async def _kept(runtime: Runtime, job_id: str) -> list[bytes | None]:
    commands = runtime._commands
    return [
        await commands.call("HGET", redis_keys.job(job_id), "request"),
        await commands.call("GET", redis_keys.result(job_id)),
    ]


async def test_every_reader_gets_the_request_and_the_result(runtime: Runtime) -> None:
    request, result = _text(4_000), _text(6_000)
    job_id = (await submit(runtime, request=request, webhook=a_webhook())).id
    claimed = await claim_one(runtime)
    assert claimed.request == request
    assert (await runtime.jobs.request_of(job_id, "tenant-a"))[1] == request
    assert await runtime.jobs.contents("request", [job_id]) == [request]
    kept_request, _ = await _kept(runtime, job_id)
    assert kept_request is not None
    assert len(kept_request) < len(request) * 0.7
    await finish(runtime, claimed, Ending(Step.SUCCEED, result=result))
    _, kept_result = await _kept(runtime, job_id)
    assert kept_result is not None
    assert await runtime.jobs.sizes("result", [job_id]) == [len(kept_result)]
    assert len(kept_result) < len(result) * 0.7
    assert bytes((await job_of(runtime, job_id, with_result=True)).result or b"") == result
    assert await runtime.jobs.contents("result", [job_id]) == [result]
    (due,) = (await runtime.webhooks.claim(count=1, lease_s=5)).claims
    assert await runtime.webhooks.result_of(due.delivery) == result


async def test_an_item_of_a_batch_is_compressed_too(runtime: Runtime) -> None:
    request = _text(4_000)
    await start_batch(runtime, [a_line(1, request=request)])
    claimed = await claim_one(runtime)
    assert claimed.request == request
    kept, _ = await _kept(runtime, claimed.id)
    assert kept is not None
    assert kept.startswith(_FRAME)


async def test_a_partial_answer_is_compressed_too(runtime: Runtime) -> None:
    claimed = await start(runtime)
    text = msgspec.json.decode(_text(5_000))["messages"][0]["content"]
    events = an_answer(text)[:3]
    await append(runtime, claimed, *events)
    failure = Ending(Step.FAIL, error=JobError("upstream_error", "The LLM failed.", retryable=True))
    await finish(runtime, claimed, failure, seq=claimed.next_seq + len(events))
    await runtime.partials.keep_due()
    _, kept = await _kept(runtime, claimed.id)
    assert kept is not None
    assert kept.startswith(_FRAME)
    found = (await runtime.partials.added_to(await job_of(runtime, claimed.id))).partial
    assert isinstance(found, msgspec.Raw)
    assert msgspec.json.decode(found) == [{"type": "text", "text": text}]


async def test_it_can_be_switched_off_and_on(start_runtime: StartRuntime) -> None:
    """Each release reads both forms, so processes with and without it run side by side."""
    on, off = await start_runtime(), await start_runtime(compress_above_bytes=0)
    request = _text(4_000)
    for writer, reader in ((on, off), (off, on)):
        job_id = (await submit(writer, request=request)).id
        kept, _ = await _kept(reader, job_id)
        assert kept is not None
        assert kept.startswith(_FRAME) is (writer is on)
        assert (await claim_one(reader)).request == request


async def test_small_ones_are_kept_as_they_are(runtime: Runtime) -> None:
    job_id = (await submit(runtime)).id
    assert (await _kept(runtime, job_id))[0] == A_REQUEST
