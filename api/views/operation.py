"""An operation as its caller sees it."""

from typing import Any, Final

import msgspec

from shared.clock import to_rfc3339
from shared.job_filter import JobFilter
from shared.operation import Operation, OperationAction, OperationCounts, OperationState

_encode: Final = msgspec.json.Encoder().encode


class OperationUrls(msgspec.Struct, frozen=True):
    """Where the operation is found and what can be done with it."""

    self: str
    cancel: str


class OperationView(msgspec.Struct, frozen=True, kw_only=True):
    """An operation."""

    id: str
    type: str
    action: OperationAction
    filter: dict[str, Any]
    status: OperationState
    waiting_for: str | None
    counts: OperationCounts
    created_at: str
    ended_at: str | None
    urls: OperationUrls


class OperationPage(msgspec.Struct, frozen=True):
    """A list of operations; ``next`` is the ``after`` of the next page."""

    data: list[OperationView]
    has_more: bool
    next: str | None


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation would find now."""

    type: str
    action: OperationAction
    filter: dict[str, Any]
    matched: int
    has_more: bool
    """There are more, which were not counted."""


def url_of(operation_id: str) -> str:
    """The operation's path, which is its ``Location``."""
    return f"/v1/operations/{operation_id}"


def render(operation: Operation) -> bytes:
    """The operation as one line of JSON."""
    return _encode(view_of(operation))


def render_page(operations: list[Operation], next_after: str | None) -> bytes:
    """A page of operations, as one line of JSON."""
    return _encode(OperationPage([view_of(each) for each in operations], next_after is not None, next_after))


def render_dry_run(action: OperationAction, wanted: JobFilter, *, matched: int, has_more: bool) -> bytes:
    """The count of an operation that is not done, as one line of JSON."""
    return _encode(DryRun(type="dry_run", action=action, filter=shown(wanted), matched=matched, has_more=has_more))


def view_of(operation: Operation) -> OperationView:
    """The operation's JSON form."""
    url = url_of(operation.id)
    return OperationView(
        id=operation.id,
        type="operation",
        action=operation.action,
        filter=shown(operation.filter),
        status=operation.state,
        waiting_for=operation.waiting_for,
        counts=operation.counts,
        created_at=to_rfc3339(operation.created_ms),
        ended_at=None if operation.ended_ms is None else to_rfc3339(operation.ended_ms),
        urls=OperationUrls(self=url, cancel=f"{url}/cancel"),
    )


def shown(wanted: JobFilter) -> dict[str, Any]:
    """The filter as callers write it."""
    members: dict[str, Any] = msgspec.to_builtins(wanted)
    return {
        name.removesuffix("_ms"): to_rfc3339(value) if name.endswith("_ms") else value
        for name, value in members.items()
    }
