"""The results of a batch as JSON lines, whatever their number and size: read in pages, sent as they are read.

A body that cannot be continued is broken off, so that it never looks whole. Results are sent as Redis has them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.http.disconnects import abort, until_gone
from api.http.responses import NO_TRANSFORM
from api.state.key_ring import credential_of
from shared.batch import Batch, EndedItem, InvalidItem
from shared.errors import INVALID_LINE, InvalidCursor, JobError, NotFound, StorageFull, StorageUnavailable
from shared.job import Job, JobState, Usage
from shared.store.batches import Order
from shared.store.runtime import Runtime

JSON_LINES: Final = "application/jsonl"

_PAGE_ITEMS: Final = 250
_PORTION_BYTES: Final = 1 << 20
"""Bytes of results in memory at once; a single result may be larger."""
_MOST_AT_ONCE: Final = 64 << 10
_STALLED_S: Final = 60.0
"""A client that has taken nothing of the last piece for this long is cut."""

_encode: Final = msgspec.json.Encoder().encode


class ResultLine(msgspec.Struct, frozen=True):
    """How one line of a batch ended."""

    line: int
    custom_id: str | None
    job_id: str | None
    """Null if the line could not run."""
    status: JobState
    result: msgspec.Raw | None
    usage: Usage | None
    error: JobError | None


def line_of_invalid(item: InvalidItem) -> ResultLine:
    """The result of a line that could not run: a failed item."""
    error = JobError(INVALID_LINE, item.message, retryable=False)
    return ResultLine(item.line, item.custom_id, None, JobState.FAILED, None, None, error)


def line_of_job(line: int, job: Job, result: bytes | None) -> ResultLine:
    """The result of a line that ran. ``result``: as it is stored."""
    raw = None if result is None else msgspec.Raw(result)
    return ResultLine(line, job.spec.custom_id, job.id, job.state, raw, job.usage, job.error)


class _Found(NamedTuple):
    line: int
    job: Job | None
    """None if the line could not run."""
    invalid: InvalidItem | None
    result_bytes: int

    @property
    def state(self) -> JobState:
        return JobState.FAILED if self.job is None else self.job.state

    @property
    def custom_id(self) -> str | None:
        if self.job is not None:
            return self.job.spec.custom_id
        return self.invalid.custom_id if self.invalid is not None else None


class _Wanted(NamedTuple):
    """Whose results are asked for. None: all."""

    state: JobState | None
    custom_ids: Collection[str] | None

    def has(self, state: JobState, custom_id: str | None) -> bool:
        return self.state in (None, state) and (self.custom_ids is None or custom_id in self.custom_ids)

    def is_all(self, seen: Collection[str | None]) -> bool:
        """Whether none but these are asked for: no two items have the same custom id."""
        return self.custom_ids is not None and all(custom_id in seen for custom_id in self.custom_ids)


Encode = Callable[[ResultLine], bytes]


async def results_response(
    runtime: Runtime,
    batch: Batch,
    *,
    order: Order = Order.SUBMITTED,
    status: JobState | None = None,
    after: int | None = None,
    custom_ids: Collection[str] | None = None,
    encode: Encode = _encode,
) -> "JsonLinesResponse":
    """The results so far, after that of the line ``after``; with ``custom_ids``, theirs alone.

    Raises InvalidCursor, StorageUnavailable.
    """
    first = await runtime.batches.ended_items(batch.id, order, after=after, count=_PAGE_ITEMS)
    return JsonLinesResponse(_pieces(runtime, batch, order, _Wanted(status, custom_ids), first, encode))


async def _pieces(
    runtime: Runtime, batch: Batch, order: Order, wanted: _Wanted, items: list[EndedItem], encode: Encode
) -> AsyncIterator[bytes]:
    seen: set[str | None] = set()
    while items and not wanted.is_all(seen):
        found = await _found_of(runtime, batch.tenant, items, wanted)
        seen.update(one.custom_id for one in found)
        for portion in _portions(found):
            lines = await _lines_of(runtime, batch.tenant, portion)
            if lines:
                yield b"\n".join([*map(encode, lines), b""])
        items = await runtime.batches.ended_items(batch.id, order, after=items[-1].line, count=_PAGE_ITEMS)
    await runtime.batches.get(batch.id, batch.tenant)  # NotFound: it was erased meanwhile, so items are missing


async def _found_of(runtime: Runtime, tenant: str, items: Sequence[EndedItem], wanted: _Wanted) -> list[_Found]:
    """The items that are wanted and not erased, with the sizes of their results."""
    ids = [item.job_id for item in items if item.job_id is not None]
    jobs = dict(zip(ids, await runtime.jobs.get_many(ids, tenant), strict=True))
    succeeded = [
        job_id
        for job_id, job in jobs.items()
        if job is not None and job.state is JobState.SUCCEEDED and wanted.has(job.state, job.spec.custom_id)
    ]
    sizes = dict(zip(succeeded, await runtime.jobs.sizes("result", succeeded), strict=True))
    found: list[_Found] = []
    for item in items:
        job = None if item.job_id is None else jobs[item.job_id]
        if job is None and item.invalid is None:
            continue
        one = _Found(item.line, job, item.invalid, 0 if job is None else sizes.get(job.id, 0))
        if wanted.has(one.state, one.custom_id):
            found.append(one)
    return found


def _portions(found: Sequence[_Found]) -> list[list[_Found]]:
    """In order. Each has at most _PORTION_BYTES, or one item."""
    portions: list[list[_Found]] = []
    size = 0
    for one in found:
        if not portions or size + one.result_bytes > _PORTION_BYTES:
            portions.append([])
            size = 0
        portions[-1].append(one)
        size += one.result_bytes
    return portions


async def _lines_of(runtime: Runtime, tenant: str, portion: Sequence[_Found]) -> list[ResultLine]:
    async with runtime.reads.turn(tenant, sum(one.result_bytes for one in portion)):
        succeeded = [one.job.id for one in portion if one.job is not None and one.job.state is JobState.SUCCEEDED]
        results = dict(zip(succeeded, await runtime.jobs.contents("result", succeeded), strict=True))
    lines: list[ResultLine] = []
    for one in portion:
        if one.job is None:
            assert one.invalid is not None
            lines.append(line_of_invalid(one.invalid))
        elif one.job.id not in results:
            lines.append(line_of_job(one.line, one.job, None))
        elif (result := results[one.job.id]) is not None:  # else it was erased just now
            lines.append(line_of_job(one.line, one.job, result))
    return lines


class JsonLinesResponse(Response):
    """Sends pieces as they are made, and makes no more than the client takes. Stops when the client disconnects.

    An error after the head closes the connection without the body's end.
    """

    def __init__(self, pieces: AsyncIterator[bytes], *, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = 200
        self.background = None
        self._pieces = pieces
        self.init_headers({"content-type": JSON_LINES, "cache-control": NO_TRANSFORM, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises the error if the server is not uvicorn, whose connection we can close."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        leaving = asyncio.create_task(until_gone(receive), name="results client leaves")
        credential = credential_of(scope)
        if credential is not None:
            credential.hold(leaving.cancel)
        try:
            async for piece in self._pieces:
                for start in range(0, len(piece), _MOST_AT_ONCE):
                    if credential is not None and credential.is_over:
                        await abort(scope, receive)
                        return
                    if leaving.done():
                        return
                    async with asyncio.timeout(_STALLED_S):
                        body = piece[start : start + _MOST_AT_ONCE]
                        await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (StorageUnavailable, StorageFull, TimeoutError, NotFound, InvalidCursor):
            if not await abort(scope, receive):
                raise  # the server itself then breaks the response off
        finally:
            leaving.cancel()
            if credential is not None:
                credential.release(leaving.cancel)
