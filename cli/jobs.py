"""`tokenspool jobs`: a list of jobs, all about one, and what can be done with it."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from cli.api_client import call, open_client, pages
from cli.errors import CommandError
from cli.output import dollars, local, put_fields, put_json, put_rows, relative, span
from cli.terminal import note, printable, put

_HEAD: Final = ("id", "status", "model", "created", "ran", "cost", "tags")


def list_jobs(query: Mapping[str, str | None], *, limit: int, as_json: bool, url: str) -> None:
    """Print the newest ``limit`` jobs that ``query`` matches. Raises CommandError."""
    given = {name: value for name, value in query.items() if value is not None}
    with open_client(url) as client:
        found = pages(client, url, "/v1/jobs", given, most=limit)
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
    if as_json:
        put_json(job)
        return
    put_fields(_fields_of(job))
    if isinstance(result := job.get("result"), dict):
        put("\n" + printable(str(result.get("text"))) + "\n")


def _fields_of(job: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is known of it, in words."""
    yield "job", str(job.get("id"))
    yield "status", _status_of(job)
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
    for name in ("batch_id", "custom_id", "retry_of"):
        yield name.replace("_", " "), job.get(name) or ""
    yield "tags", " ".join(job.get("tags") or ())
    yield "metadata", " ".join(f"{name}={value}" for name, value in (job.get("metadata") or {}).items())
    match job.get("webhook"):
        case {"url": webhook_url}:
            yield "webhook", webhook_url


def _took(job: Mapping[str, Any], name: str) -> str:
    milliseconds = (job.get("timing") or {}).get(name)
    return "" if milliseconds is None else span(milliseconds / 1000)


def cancel_jobs(job_ids: Sequence[str], *, as_json: bool, url: str) -> None:
    """End the jobs, and print how each ended. Raises CommandError, after the others, for those that it cannot end."""

    def cancel(job_id: str) -> dict[str, Any]:
        return call(client, url, "POST", f"{_path(job_id)}/cancel")

    with open_client(url) as client:
        for job in _each(job_ids, cancel):
            if as_json:
                put_json(job)
            elif job.get("status") == "cancelled":
                put(f"{printable(str(job.get('id')))} cancelled\n")
            else:
                put(f"{printable(str(job.get('id')))} had ended as {printable(_status_of(job))}\n")


def retry_jobs(job_ids: Sequence[str], *, as_json: bool, url: str) -> None:
    """Submit the jobs again, and print the new ids. Raises CommandError, after the others, for those that it cannot."""

    def retry(job_id: str) -> dict[str, Any]:
        headers = {"Idempotency-Key": secrets.token_urlsafe(24)}  # as it may be sent again
        return call(client, url, "POST", f"{_path(job_id)}/retry", headers=headers)

    with open_client(url) as client:
        for job in _each(job_ids, retry):
            put_json(job) if as_json else put(printable(str(job.get("id"))) + "\n")


def _each(job_ids: Sequence[str], act: Any) -> Iterator[dict[str, Any]]:
    """What ``act`` returns for each job. Raises CommandError: at once for one job, else after all of them."""
    failed = 0
    for job_id in job_ids:
        try:
            yield act(job_id)
        except CommandError as error:
            if len(job_ids) == 1:
                raise
            failed += 1
            note(f"{job_id}: {error}")
    if failed:
        raise CommandError(f"{failed} of {len(job_ids)} jobs could not be changed; the lines above say why.")


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"
