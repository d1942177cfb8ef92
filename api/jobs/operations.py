"""Does the operations of all tenants, a piece at a time: for the loops of the API processes.

A piece may be done twice, by two processes or after a process died. So Redis cancels and erases in the step that counts, and
each retry has an Idempotency-Key that is made from the operation and the job.
"""

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from api.jobs.retry import can_be_retried, retry
from api.state.api_state import ApiState
from shared.errors import NotEnded, NotFound, Problem
from shared.job import Job
from shared.operation import Operation, OperationAction, OperationCounts
from shared.store.jobs import Page
from shared.store.operations import Piece

_PIECE_JOBS: Final = 50
"""Cancelling or erasing so many takes Redis a few milliseconds."""
_AT_ONCE: Final = 8
_PIECE_S: Final = 2.0
"""A piece of retries ends after this, well before another process would take it over."""
_MOST_WAIT_S: Final = 30.0
"""How long a piece is put off at most: the limit that holds it up may be raised meanwhile."""


class _Outcome(StrEnum):
    """What became of a job; the values are members of OperationCounts."""

    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


async def advance(api: ApiState) -> bool:
    """Does the next piece of the operation that has waited longest. False if there is none. Raises Problem if Redis fails."""
    claimed = await api.runtime.operations.claim()
    if claimed is None:
        return False
    operation = claimed.operation
    if not await _may_go_on(api, operation):
        await api.runtime.operations.cancel(operation.id, operation.tenant)
        api.log.warning("operation_cancelled", operation_id=operation.id, key_id=operation.caller.key_id)
        return True
    try:
        page = await api.runtime.jobs.list(operation.tenant, operation.jobs, after=operation.cursor, limit=_PIECE_JOBS)
        piece = await _piece_of(api, operation, page)
    except Problem as problem:
        piece = _held_up(problem)
    await api.runtime.operations.advance(claimed, piece)
    return True


async def _may_go_on(api: ApiState, operation: Operation) -> bool:
    """Whether the API key that began it is still valid."""
    key_id = operation.caller.key_id
    if key_id is None:
        return True
    try:
        key = await api.runtime.api_keys.get(key_id, operation.tenant)
    except NotFound:
        return False
    return not key.has_ended(await api.runtime.api_keys.now_ms())


async def _piece_of(api: ApiState, operation: Operation, page: Page) -> Piece:
    if operation.action is OperationAction.RETRY:
        return await _retries(api, operation, page)
    ids = [job.id for job in page.jobs]
    return Piece(page.next_after, page.next_after is None, OperationCounts(matched=len(ids)), ids)


async def _retries(api: ApiState, operation: Operation, page: Page) -> Piece:
    """Retries the jobs of a page, in order, until a limit or the time of a piece is reached."""
    clock = asyncio.get_running_loop().time
    ends_s = clock() + _PIECE_S
    outcomes: list[_Outcome] = []
    problem: Problem | None = None
    while len(outcomes) < len(page.jobs) and problem is None and clock() < ends_s:
        some = page.jobs[len(outcomes) : len(outcomes) + _AT_ONCE]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_retried(api, operation, job)) for job in some]
        for task in tasks:
            if isinstance(found := task.result(), Problem):
                problem = found
                break
            outcomes.append(found)
    counts = _counts_of(outcomes)
    if len(outcomes) == len(page.jobs):
        return Piece(page.next_after, page.next_after is None, counts)
    cursor = page.jobs[len(outcomes) - 1].id if outcomes else None
    return _held_up(problem, cursor, counts) if problem is not None else Piece(cursor, counts=counts)


async def _retried(api: ApiState, operation: Operation, job: Job) -> _Outcome | Problem:
    """What became of the job, or the problem that passes with time."""
    if not can_be_retried(job):
        return _Outcome.SKIPPED
    try:
        # No caller can send such a key: it would have to be printable.
        await retry(api, operation.caller, job.id, idempotency_key=f"{operation.id}\n{job.id}")
    except (NotFound, NotEnded):  # it was erased meanwhile, or its retry was
        return _Outcome.SKIPPED
    except Problem as problem:
        return _Outcome.FAILED if problem.retry_after_s is None else problem
    return _Outcome.DONE


def _counts_of(outcomes: Sequence[_Outcome]) -> OperationCounts:
    return OperationCounts(len(outcomes), **{kind: outcomes.count(kind) for kind in _Outcome})


def _held_up(problem: Problem, cursor: str | None = None, counts: OperationCounts | None = None) -> Piece:
    wait_s = min(problem.retry_after_s or _MOST_WAIT_S, _MOST_WAIT_S)
    return Piece(cursor, counts=counts or OperationCounts(), waiting_for=problem.code, wait_s=wait_s)
