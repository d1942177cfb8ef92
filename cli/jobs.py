"""`tokenspool jobs`: a list of jobs, all about one, and what can be done with it."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import httpx2

from cli.api_client import call, open_client, pages
from cli.errors import CommandError
from cli.job_options import Options, as_query
from cli.operations import act_on_many
from cli.output import dollars, local, put_fields, put_json, put_rows, put_table, relative, span
from cli.terminal import note, printable, put
from cli.waiting import sentence_of

_HEAD: Final = ("id", "status", "model", "created", "ran", "cost", "tags")
_ATTEMPTS: Final = ("attempt", "outcome", "model", "worker", "begun", "tokens", "cost")


def list_jobs(conditions: Options, *, tenant: str | None, limit: int, as_json: bool, url: str) -> None:
    """Print the newest ``limit`` jobs that meet the conditions. Raises CommandError."""
    query = {**as_query(conditions), **({"tenant": tenant} if tenant else {})}
    with open_client(url) as client:
        found = pages(client, url, "/v1/jobs", query, most=limit)
        put_rows(
            "jobs", _HEAD, found, _row, limit=limit, as_json=as_json, numbers=("ran", "cost"), cut=("model", "tags")
        )


def _row(job: Mapping[str, Any]) -> Sequence[str]:
    return (
        str(job.get("id")),
        _status_of(job),
        str(job.get("model")),
        relative(job.get("created_at")),
        _took(job, "running_ms"),
        dollars(job.get("cost_usd")),
        " ".join(job.get("tags") or ()),
    )


def _status_of(job: Mapping[str, Any]) -> str:
    """``queued, place 3``, ``running, attempt 2``, ``failed: timeout``, ``succeeded``."""
    match job:
        case {"status": "queued", "queue_position": int(place)}:
            return f"queued, place {place}"
        case {"status": "running", "attempts": int(attempts)} if attempts > 1:
            return f"running, attempt {attempts}"
        case {"status": "failed", "error": {"code": code}}:
            return f"failed: {code}"
        case _:
            return str(job.get("status"))


def show_job(job_id: str, *, as_json: bool, url: str) -> None:
    """Print a job and its result. Raises CommandError."""
    with open_client(url) as client:
        job = call(client, url, "GET", _path(job_id))
        attempts = [] if as_json else _attempts_of(client, job_id, url)
    if as_json:
        put_json(job)
        return
    put_fields(_fields_of(job))
    if attempts:
        put("\n")
        put_table(
            _ATTEMPTS, map(_attempt_row, attempts), numbers=("attempt", "tokens", "cost"), cut=("worker", "model")
        )
    for name, title in (("result", ""), ("partial", "What came so far:\n")):
        match job.get(name):
            case {"text": str(text)}:
                put(f"\n{title}{printable(text)}\n")


def _attempts_of(client: httpx2.Client, job_id: str, url: str) -> Sequence[Mapping[str, Any]]:
    """What was tried: the calls to the LLM that the ledger still has. None if the API is too old to say."""
    try:
        data = call(client, url, "GET", f"{_path(job_id)}/attempts").get("data")
    except CommandError:
        return []
    return [attempt for attempt in (data if isinstance(data, list) else []) if isinstance(attempt, dict)]


def _attempt_row(attempt: Mapping[str, Any]) -> Sequence[str]:
    usage = attempt.get("usage") or {}
    return (
        str(attempt.get("attempt")),
        attempt.get("outcome") or "running",
        attempt.get("model") or "",
        attempt.get("worker") or "",
        relative(attempt.get("begun_at")),
        f"{usage['output_tokens']:,}" if "output_tokens" in usage else "",
        dollars(attempt.get("cost_usd")),
    )


def _fields_of(job: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is known of it, in words."""
    yield "job", str(job.get("id"))
    yield "status", _status_of(job)
    if isinstance(reasons := job.get("waiting_for"), list):
        yield "why", sentence_of(reasons)
    match job.get("error"):
        case {"message": message, "retryable": is_retryable}:
            yield "error", f"{message} {'A retry may succeed.' if is_retryable else 'A retry would fail again.'}"
    yield "model", str(job.get("model"))
    yield "priority", str(job.get("priority"))
    yield "attempts", f"{job.get('attempts')} of {job.get('max_attempts')}"
    for name in ("created", "started", "ended"):
        yield name, local(job.get(f"{name}_at"))
    yield "not before", local(job.get("not_before"))
    if job.get("status") == "queued":
        yield "expires", local(job.get("expires_at"))
    yield "waited", _took(job, "queued_ms")
    yield "ran", _took(job, "running_ms")
    match job.get("usage"):
        case {"input_tokens": read, "output_tokens": written}:
            yield "tokens", f"{read:,} in, {written:,} out"
    yield "cost", dollars(job.get("cost_usd"))
    for name in ("batch_id", "custom_id", "retry_of", "end_user"):
        yield name.replace("_", " "), job.get(name) or ""
    yield "tags", " ".join(job.get("tags") or ())
    yield "metadata", " ".join(f"{name}={value}" for name, value in (job.get("metadata") or {}).items())
    match job.get("webhook"):
        case {"url": webhook_url}:
            yield "webhook", webhook_url


def _took(job: Mapping[str, Any], name: str) -> str:
    milliseconds = (job.get("timing") or {}).get(name)
    return "" if milliseconds is None else span(milliseconds / 1000)


def act(
    action: str,
    job_ids: Sequence[str],
    conditions: Options,
    *,
    all_jobs: bool,
    dry_run: bool,
    as_json: bool,
    url: str,
) -> None:
    """Cancel, retry or erase jobs. Raises CommandError, after the others, for those that it cannot change."""
    if [bool(job_ids), bool(conditions), all_jobs].count(True) != 1 or (job_ids and dry_run):
        raise CommandError(f"Give {action} job ids, or conditions (see --help), or --all for all jobs.", 2)
    if not job_ids:
        act_on_many(action, conditions, all_jobs=all_jobs, dry_run=dry_run, as_json=as_json, url=url)
        return
    failed = 0
    with open_client(url) as client:
        for job_id in job_ids:
            try:
                _act_on_one(client, action, job_id, as_json=as_json, url=url)
            except CommandError as error:
                if len(job_ids) == 1:
                    raise
                failed += 1
                note(f"{job_id}: {error}")
    if failed:
        raise CommandError(f"{failed} of {len(job_ids)} jobs could not be changed; the lines above say why.")


def _act_on_one(client: httpx2.Client, action: str, job_id: str, *, as_json: bool, url: str) -> None:
    if action == "erase":
        call(client, url, "DELETE", _path(job_id))
        note(f"{job_id} is erased")
        return
    headers = {"Idempotency-Key": secrets.token_urlsafe(24)} if action == "retry" else {}  # as it may be sent again
    job = call(client, url, "POST", f"{_path(job_id)}/{action}", headers=headers)
    if as_json:
        put_json(job)
    elif action == "retry":
        put(printable(str(job.get("id"))) + "\n")
    else:
        ended = "cancelled" if job.get("status") == "cancelled" else f"had ended as {_status_of(job)}"
        put(printable(f"{job.get('id')} {ended}") + "\n")


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"
