"""`tokenspool jobs cancel`, `retry` and `erase` with conditions: one operation on all jobs that meet them, and its progress.

The API does it, and goes on when nobody watches.
"""

import secrets
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import httpx2

from cli.api_client import call, open_client
from cli.errors import CommandError
from cli.job_options import Options, as_body
from cli.output import put_json
from cli.terminal import note, one_line

_LOOK_EVERY_S: Final = 1.0
_NOTE_EVERY_S: Final = 5.0


def act_on_many(action: str, conditions: Options, *, all_jobs: bool, dry_run: bool, as_json: bool, url: str) -> None:
    """Do it to all jobs that meet the conditions, and watch it. Raises CommandError if it fails for one of them."""
    body = {"filter": as_body(conditions)} if conditions else {"all": all_jobs}
    with open_client(url) as client:
        if dry_run:
            found = call(client, url, "POST", f"/v1/jobs/{action}", json={**body, "dry_run": True})
            count = f"{found.get('matched', 0):,}{' or more' if found.get('has_more') else ''}"
            put_json(found) if as_json else note(f"{count} jobs meet the conditions; nothing was changed")
            return
        headers = {"Idempotency-Key": secrets.token_urlsafe(24)}  # as it may be sent again
        operation = call(client, url, "POST", f"/v1/jobs/{action}", json=body, headers=headers)
        note(f"operation {operation.get('id')}")
        _watch(client, operation, url, as_json=as_json)


def watch_operation(operation_id: str, *, cancel: bool, as_json: bool, url: str) -> None:
    """Note the progress until the operation has ended; with ``cancel`` end it. Raises CommandError as act_on_many."""
    with open_client(url) as client:
        path = _path(operation_id)
        operation = call(client, url, "POST", f"{path}/cancel") if cancel else call(client, url, "GET", path)
        _watch(client, operation, url, as_json=as_json)


def _watch(client: httpx2.Client, operation: dict[str, Any], url: str, *, as_json: bool) -> None:
    operation_id = str(operation.get("id"))
    noted_s, noted = time.monotonic(), ""
    try:
        while operation.get("status") == "running":
            time.sleep(_LOOK_EVERY_S)
            operation = call(client, url, "GET", _path(operation_id))
            if time.monotonic() - noted_s >= _NOTE_EVERY_S and (news := _progress(operation)) != noted:
                noted_s, noted = time.monotonic(), news
                note(news)
    except (KeyboardInterrupt, CommandError) as error:
        said = f"{error} " if isinstance(error, CommandError) else ""
        raise CommandError(
            f"{said}The operation continues. To watch it again: tokenspool jobs operation {one_line(operation_id)}",
            error.exit_code if isinstance(error, CommandError) else 130,
        ) from None
    note(f"{one_line(str(operation.get('status')))}: {_progress(operation)}")
    if as_json:
        put_json(operation)
    if failed := _counts_of(operation).get("failed"):
        raise CommandError(f"{failed:,} jobs could not be changed: see their limits and the log of the API.")


def _progress(operation: Mapping[str, Any]) -> str:
    """``1,200 jobs found: 1,000 done, 200 skipped; waiting for too_many_queued``."""
    counts = _counts_of(operation)
    words = [f"{counts[name]:,} {name}" for name in ("done", "skipped", "failed") if counts.get(name)]
    waiting = f"; waiting for {operation['waiting_for']}" if operation.get("waiting_for") else ""
    return f"{counts.get('matched', 0):,} jobs found" + (": " if words else "") + ", ".join(words) + waiting


def _counts_of(operation: Mapping[str, Any]) -> Mapping[str, int]:
    counts = operation.get("counts")
    return counts if isinstance(counts, dict) else {}


def _path(operation_id: str) -> str:
    return f"/v1/operations/{quote(operation_id, safe='')}"
