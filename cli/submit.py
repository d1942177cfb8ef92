"""`tokenspool submit`: one prompt becomes one job, whatever the network does meanwhile."""

import secrets
import sys
import time
from typing import Any

import httpx2

from cli.api_client import job_in, nobody_answers, open_client, refusal
from cli.errors import CommandError
from cli.follow import follow_with
from cli.terminal import printable, put, tell

_ATTEMPTS = 5


def submit_prompt(prompt: str, *, follow: bool, model: str | None, max_tokens: int | None, url: str) -> None:
    """Print the job's id, or with ``follow`` its answer; the id then goes to standard error. Raises CommandError."""
    given = {"prompt": _text("prompt", prompt), "model": _text("model", model), "max_tokens": max_tokens}
    with open_client(url) as client:
        job = _submit(client, {name: value for name, value in given.items() if value is not None}, url)
        if follow:
            tell(f"job {job['id']}")
            follow_with(client, job["id"], url)
        else:
            put(printable(job["id"]) + "\n")


def _text(name: str, given: str | None) -> str | None:
    """What was given, or what standard input holds if that is meant. Raises CommandError if JSON cannot carry it."""
    try:
        text = given
        if name == "prompt" and given == "-":
            text = sys.stdin.read() if sys.stdin is not None else ""
        (text or "").encode()  # Python smuggles bytes that are no text into arguments as half surrogate pairs
    except UnicodeError:
        raise CommandError(f"The {name} must be text in UTF-8, but holds bytes that are not.", 2) from None
    return text


def _submit(client: httpx2.Client, body: dict[str, Any], url: str) -> dict[str, Any]:
    # The key makes a repeat harmless: a connection that broke after the job was taken must not make a second one.
    headers = {"Idempotency-Key": secrets.token_urlsafe(24)}
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            response = client.post("/v1/jobs", json=body, headers=headers)
        except httpx2.RequestError as error:
            if attempt == 1 and isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                raise nobody_answers(url) from None
            if attempt == _ATTEMPTS:
                raise CommandError(
                    f"The connection to {url} broke {_ATTEMPTS} times; nothing is known of the job."
                ) from None
            time.sleep(0.2 * 2**attempt)
            continue
        if response.status_code not in (200, 202):
            raise refusal(response)
        return job_in(response)
    raise AssertionError("unreachable")
