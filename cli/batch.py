"""`tokenspool batch`: a file of requests becomes one batch, and what can be done with a batch.

The file is sent while it is read, and results are written as they arrive: neither is ever in memory as a whole. Progress goes to standard
error.
"""

import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote

import httpx2

from cli.api_client import call, job_in, json_object, not_tokenspool, open_client, pages, refusal, submit_once
from cli.errors import CommandError
from cli.event_stream import Event, EventReader
from cli.job_options import Options, as_query
from cli.output import dollars, local, put_fields, put_json, put_rows, relative
from cli.terminal import note, one_line, printable, put

_ATTEMPTS: Final = 5
_GIVE_UP_AFTER_S: Final = 300
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
_PROGRESS_EVERY_S: Final = 2.0
_WORTH_WAITING: Final = (429, 502, 503, 504)
_NOT_SUCCEEDED: Final = ("failed", "cancelled", "expired")
_HEAD: Final = ("id", "status", "requests", "done", "failed", "created", "cost")


def run_batch(
    file: Path,
    options: Options,
    *,
    follow: bool,
    results: Path | None,
    key: str | None,
    as_json: bool,
    url: str,
) -> None:
    """Print the batch's id; with ``follow`` or ``results`` wait for its end. Raises CommandError unless all succeeded.

    ``key`` is an Idempotency-Key: the same file with the same key finds its batch again.
    """
    query = as_query(options)
    if results is not None:
        _check_writable(results)  # before anything is paid for
    with open_client(url) as client:
        try:
            with file.open("rb") as lines:
                batch, is_replayed = _submit(client, lines, query, url, key or secrets.token_urlsafe(24))
        except OSError as error:
            raise CommandError(f"Cannot read the file {one_line(str(file))}: {error.strerror}.", 2) from None
        if batch.get("status") != "ended" and (invalid := _invalid_lines_of(batch, is_replayed=is_replayed)):
            note(f"{invalid} of {_counts_of(batch).get('total', 0)} lines are not valid; their results say why")
        if follow or results is not None:
            note(f"batch {batch['id']}")
            _follow_to_end(client, batch["id"], url, results=results, as_json=as_json)
        elif as_json:
            put_json(batch)
        else:
            put(printable(batch["id"]) + "\n")


def _follow_to_end(
    client: httpx2.Client, batch_id: str, url: str, *, results: Path | None = None, as_json: bool
) -> None:
    """Note the progress, write the results and, ``as_json``, the batch. Raises CommandError unless all succeeded."""
    try:
        ended = _follow(client, batch_id, url)
        if results is not None:
            _write_results(client, batch_id, results)
    except KeyboardInterrupt:
        raise CommandError(
            f"Stopped following; the batch continues. To follow it again: tokenspool batch status {batch_id} --follow",
            130,
        ) from None
    if as_json:
        put_json(ended)
    counts = _counts_of(ended)
    if lost := sum(counts.get(name, 0) for name in _NOT_SUCCEEDED):
        raise CommandError(f"{lost} of {counts.get('total', 0)} requests did not succeed; their results say why.")


def _submit(
    client: httpx2.Client, lines: BinaryIO, query: Mapping[str, Any], url: str, key: str
) -> tuple[dict[str, Any], bool]:
    """The batch, and whether the key had it already."""
    headers = {"Idempotency-Key": key, "Content-Type": "application/jsonl"}

    def send() -> httpx2.Response:
        lines.seek(0)
        return client.post("/v1/batches", params=query, content=lines, headers=headers)

    response = submit_once(send, url, "batch")
    return job_in(response), response.headers.get("Idempotency-Replayed") == "true"


def _follow(client: httpx2.Client, batch_id: str, url: str) -> dict[str, Any]:
    """Notes its progress until its end. Returns the batch as it ended."""
    noted_s = 0.0
    noted = ""
    for event in _events(client, batch_id, url):
        data = json_object(event.data)
        if event.name == "ended":
            note(_progress(data))
            return data
        now_s = time.monotonic()
        if event.name == "progress" and now_s - noted_s >= _PROGRESS_EVERY_S and (news := _progress(data)) != noted:
            noted_s, noted = now_s, news
            note(news)
    raise AssertionError("unreachable")


def _progress(data: dict[str, Any]) -> str:
    counts = _counts_of(data)
    total = counts.get("total", 0)
    words = [f"{total - counts.get('queued', 0) - counts.get('running', 0)} of {total} done"]
    words += [f"{counts[name]} {name}" for name in ("running", *_NOT_SUCCEEDED) if counts.get(name)]
    if data.get("rate_per_s"):
        words.append(f"{data['rate_per_s']:.1f} a second")
    return ", ".join(words)


def _invalid_lines_of(batch: dict[str, Any], *, is_replayed: bool) -> int:
    """Lines that cannot run. An API without ``invalid_lines`` counts them in ``failed``, with those that ran and failed."""
    invalid_lines = batch.get("invalid_lines")
    if isinstance(invalid_lines, int):
        return invalid_lines
    return 0 if is_replayed else _counts_of(batch).get("failed", 0)


def _counts_of(data: Mapping[str, Any]) -> dict[str, int]:
    counts = data.get("counts")
    found = counts if isinstance(counts, dict) else {}
    return {name: number for name, number in found.items() if isinstance(number, int)}


def _events(client: httpx2.Client, batch_id: str, url: str) -> Iterator[Event]:
    """The batch's events, over as many connections as it takes. Ends only after the ``ended`` event."""
    heard_s = time.monotonic()
    pause_s = _FIRST_PAUSE_S
    while True:
        reader = EventReader()
        try:
            with client.stream("GET", f"{_path(batch_id)}/events", headers={"Accept": "text/event-stream"}) as response:
                if response.status_code != 200:
                    response.read()
                    if response.status_code not in _WORTH_WAITING:
                        raise refusal(response)
                elif not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                    raise not_tokenspool(response)
                else:
                    pause_s = _FIRST_PAUSE_S
                    for chunk in response.iter_bytes():
                        heard_s = time.monotonic()
                        yield from reader.feed(chunk)
        except httpx2.RequestError:
            pass
        if time.monotonic() - heard_s > _GIVE_UP_AFTER_S:
            raise CommandError(f"{url} has been unreachable for too long; the batch continues: {url}{_path(batch_id)}")
        time.sleep(random.uniform(0.5, 1) * pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def _check_writable(results: Path) -> None:
    try:
        results.open("ab").close()
    except OSError as error:
        raise CommandError(f"Cannot write the file {one_line(str(results))}: {error.strerror}.", 2) from None


def _write_results(client: httpx2.Client, batch_id: str, results: Path, query: Mapping[str, Any] | None = None) -> None:
    """Write all lines, in the order of the requests; after a broken connection, continue after the last whole line."""
    try:
        with results.open("wb") as out:
            _fetch_results(client, batch_id, out.write, query or {})
    except OSError as error:
        raise CommandError(f"Cannot write the file {one_line(str(results))}: {error.strerror}.") from None


def _fetch_results(
    client: httpx2.Client, batch_id: str, write: Callable[[bytes], object], query: Mapping[str, Any]
) -> None:
    last_line = 0
    for attempt in range(1, _ATTEMPTS + 1):
        unfinished = bytearray()
        try:
            with client.stream("GET", f"{_path(batch_id)}/results", params={**query, "after": last_line}) as response:
                if response.status_code != 200:
                    response.read()
                    if response.status_code not in _WORTH_WAITING or attempt == _ATTEMPTS:
                        raise refusal(response)
                else:
                    for chunk in response.iter_bytes():
                        unfinished += chunk
                        if b"\n" in chunk:
                            *whole, rest = unfinished.split(b"\n")
                            for line in whole:
                                write(bytes(line) + b"\n")
                                last_line = int(json_object(bytes(line)).get("line", last_line))
                            unfinished = rest
                    return
        except httpx2.RequestError:
            if attempt == _ATTEMPTS:
                raise CommandError(
                    f"The connection broke {_ATTEMPTS} times; the results end after line {last_line}."
                ) from None
        time.sleep(0.2 * 2**attempt)


def list_batches(*, tenant: str | None, limit: int, as_json: bool, url: str) -> None:
    """Print the newest ``limit`` batches. Raises CommandError."""
    with open_client(url) as client:
        found = pages(client, url, "/v1/batches", {"tenant": tenant} if tenant else {}, most=limit)
        put_rows("batches", _HEAD, found, _row, limit=limit, as_json=as_json, numbers=(*_HEAD[2:5], "cost"))


def _row(batch: Mapping[str, Any]) -> Sequence[str]:
    counts = _counts_of(batch)
    total = counts.get("total", 0)
    return (
        str(batch.get("id")),
        str(batch.get("status")),
        f"{total:,}",
        f"{total - counts.get('queued', 0) - counts.get('running', 0):,}",
        f"{sum(counts.get(name, 0) for name in _NOT_SUCCEEDED):,}",
        relative(batch.get("created_at")),
        dollars(batch.get("cost_usd")),
    )


def show_batch(batch_id: str, *, follow: bool, as_json: bool, url: str) -> None:
    """Print a batch; with ``follow`` its progress first. Raises CommandError, also for requests that a follower saw fail."""
    with open_client(url) as client:
        if follow:
            _follow_to_end(client, batch_id, url, as_json=as_json)
            return
        _put(call(client, url, "GET", _path(batch_id)), as_json=as_json)


def _put(batch: Mapping[str, Any], *, as_json: bool) -> None:
    put_json(batch) if as_json else put_fields(_fields_of(batch))


def _fields_of(batch: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    counts = _counts_of(batch)
    yield "batch", str(batch.get("id"))
    yield "status", str(batch.get("status"))
    yield "requests", f"{counts.get('total', 0):,}"
    for name, count in counts.items():
        if name != "total" and count:
            yield f"  {name}", f"{count:,}"
    for code, count in (batch.get("failures") or {}).items():
        yield f"  {code}", f"{count:,}"
    if batch.get("invalid_lines"):
        yield "not valid", f"{batch['invalid_lines']:,} lines; their results say why"
    for name in ("created", "ended"):
        yield name, local(batch.get(f"{name}_at"))
    match batch.get("usage"):
        case {"input_tokens": read, "output_tokens": written}:
            yield "tokens", f"{read:,} in, {written:,} out"
    yield "cost", dollars(batch.get("cost_usd"))
    yield "retry of", batch.get("retry_of") or ""
    yield "metadata", " ".join(f"{name}={value}" for name, value in (batch.get("metadata") or {}).items())


def write_results_of(batch_id: str, query: Mapping[str, Any], *, output: Path | None, url: str) -> None:
    """Write the results so far to a file, or to standard output. Raises CommandError."""
    given = {name: value for name, value in query.items() if value is not None}
    if output is not None:
        _check_writable(output)
    with open_client(url) as client:
        if output is not None:
            _write_results(client, batch_id, output, given)
        else:
            _fetch_results(client, batch_id, lambda line: put_json(json_object(line)), given)


def retry_batch(batch_id: str, *, retryable: bool, as_json: bool, url: str) -> None:
    """Submit what did not succeed again, and print the new batch's id. Raises CommandError."""
    with open_client(url) as client:
        headers = {"Idempotency-Key": secrets.token_urlsafe(24)}  # as it may be sent again
        query = {"retryable": "true"} if retryable else None
        batch = call(client, url, "POST", f"{_path(batch_id)}/retry", params=query, headers=headers)
    put_json(batch) if as_json else put(printable(str(batch.get("id"))) + "\n")


def cancel_batch(batch_id: str, *, as_json: bool, url: str) -> None:
    """End what has not ended, and print the batch. Raises CommandError."""
    with open_client(url) as client:
        _put(call(client, url, "POST", f"{_path(batch_id)}/cancel"), as_json=as_json)


def _path(batch_id: str) -> str:
    return f"/v1/batches/{quote(batch_id, safe='')}"
