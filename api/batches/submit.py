"""The only place where a batch is created.

Its body is streamed to Redis in slices, of which at most two are in memory at once. Nothing of it runs before the whole
body has come, and a failure before that leaves nothing.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple

from starlette.requests import ClientDisconnect, Request

from api.batches.items import BatchItems, BatchOptions, BatchRequest, DraftOf, options_of_job
from api.batches.lines import JOB, JsonLines, JsonRequests, Line, Splitter
from api.batches.results import JSON_LINES
from api.http.body import Held
from api.http.headers import JSON, idempotency_key, one
from api.jobs.request import NO_HEADERS, UpstreamHeaders, bounds_of, spec_members
from api.state.api_state import ApiState
from shared.api_key import Caller
from shared.batch import Batch, BatchSpec, InvalidItem, NewItem
from shared.errors import (
    IdempotencyKeyReused,
    InvalidRequest,
    NotFound,
    Problem,
    StorageUnavailable,
    TooLarge,
    UnsupportedMediaType,
)
from shared.job import JobSpec, new_id
from shared.limits import LimitState
from shared.settings import Settings
from shared.store.batches import SLICE_BYTES, SLICE_ITEMS, Started

_SILENCE_S: Final = 60.0
_LEAST_BYTES_PER_S: Final = 1024
"""A body must keep up this rate, with _SILENCE_S in addition: others wait for its place."""
_SLOWEST_S: Final = 1800.0
_STILL_HERE_S: Final = 5.0
"""How often the store is shown that a body is still arriving: a third of the time after which it drops the batch."""
_PIECE_BYTES: Final = 64 << 10
_BREATH_S: Final = 0.002
"""After this much work other requests have a turn."""
_SMALL_BYTES: Final = 1 << 20
"""A body with a smaller Content-Length does not need a place for uploads."""
_START_S: Final = 0.5
"""How long a request starts the items of its batch itself; the background loops start the rest."""
_ERASE_S: Final = 60.0


class BatchForm(StrEnum):
    """The form of a body."""

    JSON = "request"
    """One object with a list of requests. The enum's value is what error messages call one of them."""
    LINES = "line"


_CHARSET: Final = re.compile(r'charset\s*=\s*"?utf-?8"?', re.IGNORECASE)
_FORMS: Final = {
    JSON: BatchForm.JSON,
    JSON_LINES: BatchForm.LINES,
    "application/x-ndjson": BatchForm.LINES,
    "application/x-jsonlines": BatchForm.LINES,
}


def form_of(request: Request) -> BatchForm:
    """The form that ``Content-Type`` names. Raises UnsupportedMediaType."""
    name, _, parameter = (one(request, b"content-type") or "").partition(";")
    form = _FORMS.get(name.strip().lower())
    if form is None or (parameter.strip() and not _CHARSET.fullmatch(parameter.strip(" \t;"))):
        raise UnsupportedMediaType(f"The body must be {JSON} or {JSON_LINES}: send it with that Content-Type.")
    return form


class SubmittedBatch(NamedTuple):
    """The batch: new, or the one that the Idempotency-Key already has."""

    batch: Batch
    is_replayed: bool
    limits: tuple[LimitState, ...] = ()
    """State of each configured limit after this submit."""


async def submit_batch(
    request: Request,
    api: ApiState,
    caller: Caller,
    *,
    form: BatchForm = BatchForm.JSON,
    options: BatchOptions | None = None,
    takes_options: bool = False,
    draft_of: DraftOf | None = None,
    upstream_headers: UpstreamHeaders = NO_HEADERS,
) -> SubmittedBatch:
    """Creates a batch from the request's body, or finds the one that its Idempotency-Key already has.

    ``takes_options``: the body may have a ``job`` member; else ``options`` are those of the batch. ``draft_of``: how
    the parameters of one request are read, by default as a job's.

    Raises InvalidRequest, TooLarge, UnsupportedMediaType, ClientDisconnect, StorageFull, QueueFull, StorageUnavailable,
    RateLimited, TooManyQueued, BudgetExceeded, IdempotencyKeyReused, Unauthenticated; NotFound if the key's batch was
    erased. A line that cannot run raises nothing.
    """
    if form_of(request) is not form:
        raise UnsupportedMediaType(f"The body must be {JSON}: send it with that Content-Type.")
    _refuse_compressed(request)
    key = idempotency_key(request)
    coming = _Coming(
        request,
        api,
        caller.tenant,
        form,
        options,
        takes_options=takes_options,
        draft_of=draft_of,
        with_fingerprint=key is not None,
    )
    slices = while_its_key_stands(request, api, coming.slices())
    batches, tenant = api.runtime.batches, caller.tenant
    if key is not None and (known := await batches.known(tenant, key)):
        async with _room_for(coming, api, tenant):
            async for _ in slices:
                pass
        await api.key_ring.still(request.scope)
        if coming.fingerprint() != known.fingerprint:
            raise IdempotencyKeyReused
        return SubmittedBatch(await batches.get(known.id, tenant), is_replayed=True)
    api.runtime.memory.check()

    async def start(batch_id: str, total: int) -> Started:
        await api.key_ring.still(request.scope)
        return await batches.start(
            batch_id,
            tenant,
            _spec_of(coming.options, upstream_headers, caller),
            expires_in_s=coming.options.expires_in_s,
            total=total,
            idempotency_key=key,
            fingerprint=coming.fingerprint() if key is not None else "",
            key_limits=caller.limits,
        )

    return await bear(api, caller, slices, start, room=_room_for(coming, api, tenant), has_key=key is not None)


@contextlib.asynccontextmanager
async def _room_for(coming: "_Coming", api: ApiState, tenant: str) -> AsyncIterator[None]:
    """Room in memory for the body. A small one is counted with all other bodies; a larger one waits for a place.

    Raises QueueFull.
    """
    if coming.is_small:
        with Held(api) as held:
            coming.count_in(held)
            yield
    else:
        async with api.uploads.place_of(tenant):
            yield


async def while_its_key_stands(
    request: Request, api: ApiState, slices: AsyncGenerator[list[NewItem | InvalidItem]]
) -> AsyncGenerator[list[NewItem | InvalidItem]]:
    """Passes the slices on, which may take half an hour, while the request's key is valid.

    Raises Unauthenticated within seconds of the key's end, StorageUnavailable.
    """
    async with contextlib.aclosing(slices):
        async for items in slices:
            await api.key_ring.still(request.scope)
            yield items


async def bear(
    api: ApiState,
    caller: Caller,
    slices: AsyncGenerator[list[NewItem | InvalidItem]],
    start: Callable[[str, int], Awaitable[Started]],
    *,
    room: AbstractAsyncContextManager[None],
    has_key: bool,
) -> SubmittedBatch:
    """Creates a batch of these items, which are read while ``room`` is held.

    ``start`` is called after the last item, with the batch's id and the number of items. It returns the id of the batch
    that counts, which may be an earlier one with the same Idempotency-Key. If ``slices`` or ``start`` raises, nothing
    is left. ``has_key``: the batch may stay if only the reply to ``start`` was lost, since a repeat finds it.

    Raises StorageFull, QueueFull, StorageUnavailable, RateLimited, TooManyQueued, BudgetExceeded.
    """
    async with room:
        return await _bear(api, caller, slices, start, has_key=has_key)


async def _bear(
    api: ApiState,
    caller: Caller,
    slices: AsyncGenerator[list[NewItem | InvalidItem]],
    start: Callable[[str, int], Awaitable[Started]],
    *,
    has_key: bool,
) -> SubmittedBatch:
    batches, tenant = api.runtime.batches, caller.tenant
    batch_id = new_id("batch")
    try:
        await batches.open(batch_id, tenant, key_id=caller.key_id or "", key_limits=caller.limits)
        total = await _add_all(api, batch_id, caller, slices)
        found_id, limits = await start(batch_id, total)
        is_replayed = found_id != batch_id
        with contextlib.suppress(Problem):  # the batch exists: the loops do the rest
            await batches.advance_all(batch_id, most_s=_ERASE_S if is_replayed else _START_S)
        api.log.debug("submit_replayed" if is_replayed else "batch_submitted", batch_id=found_id)
        return SubmittedBatch(await batches.get(found_id, tenant), is_replayed, limits)
    except BaseException as error:
        leaving = _leave_nothing(api, batch_id, tenant, may_stand=has_key)
        await asyncio.shield(asyncio.create_task(leaving, name="drop a batch"))
        if isinstance(error, NotFound):  # not the caller's mistake: Redis lost the batch, or took us for dead
            raise StorageUnavailable("The storage lost the batch while it was received: send it again.") from None
        raise


async def _add_all(
    api: ApiState, batch_id: str, caller: Caller, slices: AsyncGenerator[list[NewItem | InvalidItem]]
) -> int:
    """Adds slice after slice: while one is on its way to Redis, the next is read. Returns how many items they had."""
    total = 0
    adding: asyncio.Task[None] | None = None
    try:
        async with contextlib.aclosing(slices):
            async for items in slices:
                api.runtime.memory.check()
                if adding is not None:
                    await adding
                slice_added = api.runtime.batches.add(
                    batch_id, caller.tenant, items, key_id=caller.key_id or "", key_limits=caller.limits
                )
                adding = asyncio.create_task(slice_added, name="add to a batch")
                total += len(items)
        if adding is not None:
            await adding
        return total
    finally:
        # It may be on its way: the batch can be dropped only once all that is added has come.
        if adding is not None and not adding.done():
            await asyncio.shield(asyncio.wait((adding,)))
        if adding is not None and not adding.cancelled():
            adding.exception()


async def _leave_nothing(api: ApiState, batch_id: str, tenant: str, *, may_stand: bool) -> None:
    """Drops the batch. If Redis is away, the background loops drop it later, since no more of it comes.

    The batch exists if only the reply to its start was lost. The caller sees a failure and sends it again. Without an
    Idempotency-Key that creates another batch, so this one is cancelled: it would be run and paid for as well.
    """
    batches = api.runtime.batches
    with contextlib.suppress(Problem):
        await batches.drop(batch_id, tenant)
        if not may_stand:
            with contextlib.suppress(NotFound):
                await batches.cancel(batch_id, tenant)
        await batches.advance_all(batch_id, most_s=_ERASE_S)


def _spec_of(options: BatchOptions, upstream_headers: UpstreamHeaders, caller: Caller) -> BatchSpec:
    members = spec_members(options)
    metadata = members.pop("metadata")
    items = JobSpec(
        model="",
        **members,
        anthropic_beta=upstream_headers.beta,
        anthropic_version=upstream_headers.version,
        key_id=caller.key_id or "",
    )
    return BatchSpec(items=items, metadata=metadata, webhook=options.webhook)


class _Coming:
    """The body of a batch while it arrives."""

    def __init__(
        self,
        request: Request,
        api: ApiState,
        tenant: str,
        form: BatchForm,
        options: BatchOptions | None,
        *,
        takes_options: bool,
        draft_of: DraftOf | None,
        with_fingerprint: bool,
    ) -> None:
        settings = api.settings
        self._request = request
        self._parsers = api.parsers
        self._tenant = tenant
        self._max_bytes = settings.max_batch_bytes
        self._settings = settings
        self._splitter = _splitter_of(form, settings, takes_options=takes_options)
        self._items = BatchItems(settings, noun=form, with_fingerprint=with_fingerprint, draft_of=draft_of)
        self._options: BatchOptions | None = options
        self._held: Held | None = None
        announced = one(request, b"content-length")
        announced_bytes = int(announced[:16]) if announced is not None and announced.isdecimal() else None
        if announced_bytes is not None and announced_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        self.is_small = announced_bytes is not None and announced_bytes < _SMALL_BYTES

    def count_in(self, held: Held) -> None:
        """Counts in ``held`` what comes from now on."""
        self._held = held

    @property
    def options(self) -> BatchOptions:
        """The common options of all items. Complete only after the whole body."""
        return self._options or BatchOptions()

    def fingerprint(self) -> str:
        """A hash of the whole body. Call it after ``slices``."""
        return self._items.fingerprint(self.options)

    async def slices(self) -> AsyncGenerator[list[NewItem | InvalidItem]]:
        """The items, in slices that can be added at once. An empty slice shows that the body is still arriving."""
        clock = asyncio.get_running_loop().time
        items: list[NewItem | InvalidItem] = []
        size = 0
        noted_s = breathed_s = clock()
        async with contextlib.aclosing(self._lines()) as coming:
            async for lines in coming:
                for line in lines:
                    item = await self._item_of(line)
                    item_bytes = len(item.request) if isinstance(item, NewItem) else 0
                    if items and (len(items) == SLICE_ITEMS or size + item_bytes > SLICE_BYTES):
                        yield items
                        items, size, noted_s = [], 0, clock()
                    items.append(item)
                    size += item_bytes
                    if clock() - breathed_s > _BREATH_S:
                        await asyncio.sleep(0)
                        breathed_s = clock()
                if clock() - noted_s > _STILL_HERE_S:
                    yield items
                    items, size, noted_s = [], 0, clock()
        if items:
            yield items

    async def _item_of(self, line: Line) -> NewItem | InvalidItem:
        if line.raw is None:
            return self._items.too_long(line.number)
        read = await self._parsers.parse(self._tenant, line.raw, self._items.read)
        return self._items.item_of(line.number, read)

    async def _lines(self) -> AsyncGenerator[Iterator[Line]]:
        async with contextlib.aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                yield self._splitter.feed(piece)
                if self._options is None and self._splitter.job is not None:
                    parse = partial(options_of_job, bounds=bounds_of(self._settings))
                    self._options = await self._parsers.parse(self._tenant, self._splitter.job, parse)
        yield self._splitter.end()

    async def _pieces(self) -> AsyncGenerator[bytes]:
        """The body as it arrives; an empty piece after each _STILL_HERE_S without any."""
        clock = asyncio.get_running_loop().time
        begun_s = heard_s = clock()
        size = 0
        receiving = asyncio.ensure_future(self._request.receive())
        try:
            while True:
                await asyncio.wait((receiving,), timeout=min(_STILL_HERE_S, _SILENCE_S))
                now_s = clock()
                if now_s - begun_s > min(_SLOWEST_S, _SILENCE_S + size / _LEAST_BYTES_PER_S):
                    raise InvalidRequest("The body did not arrive in time.")
                if not receiving.done():
                    if now_s - heard_s >= _SILENCE_S:
                        raise InvalidRequest(f"No part of the body arrived for {_SILENCE_S:.0f} s.")
                    yield b""
                    continue
                message = receiving.result()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > self._max_bytes:
                    raise _too_large(self._max_bytes)
                if self._held is not None:
                    self._held.grow_to(size)
                for place in range(0, len(chunk), _PIECE_BYTES):
                    yield chunk[place : place + _PIECE_BYTES]
                if not message.get("more_body", False):
                    return
                heard_s = clock()
                receiving = asyncio.ensure_future(self._request.receive())
        finally:
            receiving.cancel()


def _splitter_of(form: BatchForm, settings: Settings, *, takes_options: bool) -> Splitter:
    if form is BatchForm.LINES:
        return JsonLines(max_requests=settings.max_batch_requests, max_line_bytes=settings.max_batch_line_bytes)
    return JsonRequests(
        members=frozenset(BatchRequest.model_fields) - (set() if takes_options else {JOB}),
        max_requests=settings.max_batch_requests,
        max_line_bytes=settings.max_batch_line_bytes,
    )


def _refuse_compressed(request: Request) -> None:
    if (one(request, b"content-encoding") or "identity").lower() != "identity":
        raise UnsupportedMediaType("The body must not be compressed: send it without Content-Encoding.")


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"A batch must have at most {max_bytes} bytes.")
