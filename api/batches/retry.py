"""Retries a batch: the items that did not succeed become a new batch with the same options.

Requests are copied from the old jobs' records to the new ones' in slices, of which at most two are in memory at once.
"""

from collections.abc import AsyncGenerator
from typing import Final

import msgspec
from starlette.requests import Request

from api.batches.submit import SubmittedBatch, bear, while_its_key_stands
from api.state.api_state import ApiState
from shared.api_key import Caller
from shared.batch import Batch, InvalidItem, NewItem
from shared.errors import IdempotencyKeyReused, NotEnded
from shared.job import Job, JobState, new_id
from shared.store.batches import SLICE_BYTES, SLICE_ITEMS, Started
from shared.store.idempotency import fingerprint_of

_NONE_LEFT: Final = "No item of the batch can be retried: all succeeded, are not valid, or failed for good."


async def retry(
    request: Request,
    api: ApiState,
    caller: Caller,
    batch: Batch,
    *,
    only_retryable: bool = False,
    idempotency_key: str | None = None,
) -> SubmittedBatch:
    """The new batch, or the one that the Idempotency-Key already has. ``only_retryable``: of the items whose error is.

    Raises NotEnded before the batch's end and if nothing can be retried, IdempotencyKeyReused, StorageFull, QueueFull,
    StorageUnavailable, Unauthenticated; NotFound if the key's batch was erased.
    """
    batches = api.runtime.batches
    fingerprint = fingerprint_of({"retry_of": batch.id} | ({"retryable": True} if only_retryable else {}))
    if idempotency_key is not None and (known := await batches.known(batch.tenant, idempotency_key)):
        if known.fingerprint != fingerprint:
            raise IdempotencyKeyReused
        return SubmittedBatch(await batches.get(known.id, batch.tenant), is_replayed=True)
    api.runtime.memory.check()
    if not batch.has_ended:
        raise NotEnded("Only a batch that has ended can be retried.")
    counts, spec = batch.counts, batch.spec
    if not counts.failed + counts.cancelled + counts.expired:
        raise NotEnded(_NONE_LEFT)
    again = msgspec.structs.replace(
        spec,
        items=msgspec.structs.replace(spec.items, not_before_ms=None, key_id=caller.key_id or ""),
        retry_of=batch.id,
    )
    waited_ms = batch.expires_ms - max(batch.created_ms, spec.items.not_before_ms or 0)

    async def start(batch_id: str, total: int) -> Started:
        await api.key_ring.still(request.scope)
        return await batches.start(
            batch_id,
            batch.tenant,
            again,
            expires_in_s=max(1, waited_ms // 1000),
            total=total,
            idempotency_key=idempotency_key,
            fingerprint=fingerprint if idempotency_key is not None else "",
            key_limits=caller.limits,
        )

    slices = while_its_key_stands(request, api, _slices(api, batch, only_retryable=only_retryable))
    room = api.uploads.place_of(caller.tenant)
    return await bear(api, caller, slices, start, room=room, has_key=idempotency_key is not None)


async def _slices(api: ApiState, batch: Batch, *, only_retryable: bool) -> AsyncGenerator[list[NewItem | InvalidItem]]:
    """The new items. Raises NotEnded if there are none: all that failed were lines that cannot run, or was erased."""
    line = start = 0
    while ids := await api.runtime.batches.item_ids(batch.id, start, SLICE_ITEMS):
        start += len(ids)
        jobs = await api.runtime.jobs.get_many([job_id for job_id in ids if job_id is not None], batch.tenant)
        wanted = [job for job in jobs if job is not None and _is_wanted(job, only_retryable=only_retryable)]
        for portion in await _portions(api, wanted):
            async with api.runtime.reads.turn(batch.tenant, SLICE_BYTES):
                requests = await api.runtime.jobs.contents("request", [job.id for job in portion])
            items: list[NewItem | InvalidItem] = []
            for job, request in zip(portion, requests, strict=True):
                if request:
                    line += 1
                    spec = job.spec
                    items.append(NewItem(line, new_id("job"), spec.custom_id or "", spec.model, request, spec.end_user))
            if items:
                yield items
    if line == 0:
        raise NotEnded(_NONE_LEFT)


def _is_wanted(job: Job, *, only_retryable: bool) -> bool:
    if only_retryable:
        return job.error is not None and job.error.retryable
    return job.state is not JobState.SUCCEEDED


async def _portions(api: ApiState, jobs: list[Job]) -> list[list[Job]]:
    """In order. Each has requests of at most SLICE_BYTES, or one job."""
    sizes = await api.runtime.jobs.sizes("request", [job.id for job in jobs])
    portions: list[list[Job]] = []
    total = 0
    for job, size in zip(jobs, sizes, strict=True):
        if not portions or total + size > SLICE_BYTES:
            portions.append([])
            total = 0
        portions[-1].append(job)
        total += size
    return portions
