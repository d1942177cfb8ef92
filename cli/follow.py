"""`tokenspool follow`: a job's answer on standard output while it is generated, through broken connections and dead workers.

Every event is printed once: a reconnect names the last one seen. Notes about the work go to standard error.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from urllib.parse import quote

import httpx2

from cli.api_client import is_ours, job_in, json_object, not_tokenspool, open_client, refusal, unreachable
from cli.errors import CommandError
from cli.event_stream import Event, EventReader
from cli.output import put_json
from cli.terminal import note, one_line, printable, put
from cli.waiting import sentence_of

_ENDINGS = ("succeeded", "failed", "cancelled", "expired")
# The job goes on without us, so there is no hurry; but nobody watches a screen for longer.
_GIVE_UP_AFTER_S = 300
_FIRST_PAUSE_S, _SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 0.1, 10.0
_WORTH_WAITING = (429, 502, 503, 504)


class _Answer:
    """The text on standard output; knows whether its current line has begun. ``as_json``: it is only in the events."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json
        self._line_has_begun = False
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # half a surrogate pair is no reason to fail

    def write(self, text: str) -> None:
        text = printable(text)
        if text and not self._as_json:
            self._line_has_begun = not text.endswith("\n")  # first, for a Ctrl-C that comes with the last byte
            put(text)

    def end_line(self) -> None:
        if self._line_has_begun:
            self.write("\n")

    def interrupt(self, news: str) -> None:
        """Note something in the middle of it, on a line of its own; adds no line end to the answer."""
        if self._line_has_begun and sys.stdout.isatty() and sys.stderr.isatty():
            print(file=sys.stderr)
        note(news)


def follow_job(job_id: str, *, as_json: bool, url: str) -> None:
    """Print the answer, or with ``as_json`` each event. Raises CommandError unless the job succeeds."""
    with open_client(url) as client:
        follow_with(client, job_id, url, as_json=as_json)


def follow_with(client: httpx2.Client, job_id: str, url: str, *, as_json: bool = False) -> None:
    """As follow_job, with a client that is open already."""
    answer = _Answer(as_json=as_json)
    try:
        for event in _events(client, job_id, url, answer):
            if as_json:
                put_json({"event": event.name, "id": event.last_event_id, "data": json_object(event.data)})
            _show(event, answer)
    except KeyboardInterrupt:
        raise CommandError(
            f"Stopped following; the job continues. To follow it again: tokenspool follow {job_id}", 130
        ) from None
    finally:
        answer.end_line()


def _show(event: Event, answer: _Answer) -> None:
    """Show one event. Raises CommandError at an end that is no success."""
    data = json_object(event.data)
    match event.name:
        case "delta":
            answer.write(str(data.get("text", "")))
        case "queued" | "waiting" if isinstance(data.get("waiting_for"), list):
            answer.end_line()
            note(one_line(sentence_of(data["waiting_for"])))
        case "retry":
            answer.end_line()
            note("the call to the LLM failed; trying again")
        case "reset":
            answer.end_line()
            note(f"the text starts over ({data.get('reason', 'unknown')})")
        case "snapshot":
            answer.end_line()
            answer.write(str(data.get("text", "")))
        case "failed":
            error = data.get("error")
            why = f"{error.get('message')} ({error.get('code')})" if isinstance(error, dict) else "no reason given"
            raise CommandError(one_line(f"The job failed: {why}"))
        case "cancelled" | "expired":
            raise CommandError(
                "The job was cancelled." if event.name == "cancelled" else "The job expired before it started."
            )
        case _:
            pass  # started, succeeded, and what later versions may add


def _events(client: httpx2.Client, job_id: str, url: str, answer: _Answer) -> Iterator[Event]:
    """Every event once, up to the one that ends the job, over as many connections as it takes."""
    path = f"/v1/jobs/{quote(job_id, safe='')}"
    last_event_id = ""
    heard_at = time.monotonic()
    has_connected = False
    is_lost = False
    pause_s = _FIRST_PAUSE_S
    while True:
        reader = EventReader()
        try:
            with client.stream("GET", f"{path}/events", headers=_headers(last_event_id)) as response:
                if response.status_code == 204:
                    yield _ending(client, path)
                    return
                if response.status_code != 200:
                    response.read()
                    if response.status_code == 404 and is_ours(response):
                        raise CommandError(f"No job {one_line(job_id)} at {url}.")
                    if response.status_code not in _WORTH_WAITING:
                        raise refusal(response)
                    pause_s = _retry_after_s(response, pause_s)
                elif not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                    raise not_tokenspool(response)
                else:
                    has_connected, is_lost, pause_s = True, False, _FIRST_PAUSE_S
                    for chunk in response.iter_bytes():
                        heard_at = time.monotonic()
                        for event in reader.feed(chunk):
                            last_event_id = event.last_event_id or last_event_id
                            yield event
                            if event.name in _ENDINGS:
                                return
        except httpx2.RequestError as error:
            if not has_connected and isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                raise unreachable(url) from None
        if time.monotonic() - heard_at > _GIVE_UP_AFTER_S:
            raise CommandError(
                f"{url} has been unreachable for too long; the job continues. To follow it again: tokenspool follow {job_id}"
            )
        if not is_lost:
            answer.interrupt(
                "the connection broke; reconnecting" if has_connected else "the API is not ready; trying again"
            )
            is_lost = True
        if reader.retry_ms is not None:
            pause_s = reader.retry_ms / 1000
        pause_s = min(max(pause_s, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
        time.sleep(random.uniform(0.5, 1) * pause_s)
        pause_s *= 2


def _headers(last_event_id: str) -> dict[str, str]:
    headers = {"Accept": "text/event-stream"}
    return {**headers, "Last-Event-ID": last_event_id} if last_event_id else headers


def _ending(client: httpx2.Client, path: str) -> Event:
    """The last event of a job whose other events we have seen."""
    response = client.get(path, params={"result": "false"})
    if response.status_code != 200:
        raise refusal(response)
    job = job_in(response)
    if job["status"] not in _ENDINGS:
        raise not_tokenspool(response)
    return Event(job["status"], json.dumps(job), "")


def _retry_after_s(response: httpx2.Response, otherwise_s: float) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else otherwise_s
