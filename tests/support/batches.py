"""Makes batches directly in the store, and runs their items without a worker."""

from collections.abc import Sequence
from typing import Any

from shared.batch import ITEM_PRIORITY, Batch, BatchSpec, InvalidItem, NewItem
from shared.errors import JobError
from shared.job import JobSpec, Step, new_id
from shared.store.queue import Claim, Ending, Finished
from shared.store.runtime import Runtime
from tests.support.builders import A_REQUEST, an_id, encoded
from tests.support.store import claim

TENANT = "default"
"""The tenant of a caller without X-Tenant."""


async def a_batch(
    runtime: Runtime,
    count: int = 3,
    *,
    tenant: str = TENANT,
    invalid: Sequence[int] = (),
    model: str = "a-model",
    requests: Sequence[bytes] = (),
    metadata: dict[str, str] | None = None,
    expires_in_s: int = 3600,
    **spec: Any,
) -> Batch:
    """A batch of ``count`` lines, from ``row-1``; the lines in ``invalid`` cannot run. Its items are queued."""
    batch_id = new_id("batch")
    await runtime.batches.open(batch_id, tenant)
    items: list[NewItem | InvalidItem] = []
    for line in range(1, count + 1):
        if line in invalid:
            items.append(InvalidItem(line, f"line {line} is not JSON"))
        else:
            request = requests[line - 1] if requests else A_REQUEST
            items.append(NewItem(line, an_id(), f"row-{line}", model, request))
    for start in range(0, count, 250):
        await runtime.batches.add(batch_id, tenant, items[start : start + 250])
    common = BatchSpec(JobSpec(model="", priority=ITEM_PRIORITY, **spec), metadata or {})
    await runtime.batches.start(batch_id, tenant, common, expires_in_s=expires_in_s)
    await runtime.batches.advance_all(batch_id)
    return await runtime.batches.get(batch_id, tenant)


def a_result(text: str) -> bytes:
    """A result as FINISH stores it."""
    message = {"model": "a-model-20260101", "content": [{"type": "text", "text": text}]}
    return encoded({"text": text, "stop_reason": "end_turn", "message": message})


async def succeed(runtime: Runtime, claimed: Claim, text: str = "Hello.") -> None:
    """Ends the job with that text, without writing the text to the log."""
    await _finish(runtime, claimed, Ending(Step.SUCCEED, a_result(text)))


async def fail(runtime: Runtime, claimed: Claim) -> None:
    """Ends the job without a result."""
    await _finish(runtime, claimed, Ending(Step.FAIL, error=JobError("upstream_error", "The LLM failed.", True)))


async def _finish(runtime: Runtime, claimed: Claim, ending: Ending) -> None:
    reply = await runtime.queue.finish(claimed, ending, seq=claimed.next_seq)
    assert reply.outcome is Finished.ENDED


async def run_all(runtime: Runtime, text: str = "Hello.") -> list[str]:
    """Ends every queued job with success. Returns their ids in that order."""
    ended: list[str] = []
    while claims := await claim(runtime, 250):
        for claimed in claims:
            await succeed(runtime, claimed, text)
            ended.append(claimed.id)
    return ended
