"""`tokenspool submit`: one prompt becomes one job, also on a network that breaks."""

import secrets
import sys
from typing import Any

import httpx2

from cli.api_client import job_in, open_client, submit_once
from cli.errors import CommandError
from cli.follow import follow_with
from cli.terminal import note, printable, put


def submit_prompt(prompt: str, *, follow: bool, model: str | None, max_tokens: int | None, url: str) -> None:
    """Print the job's id, or with ``follow`` its answer; the id then goes to standard error. Raises CommandError."""
    given = {"prompt": _text("prompt", prompt), "model": _text("model", model), "max_tokens": max_tokens}
    with open_client(url) as client:
        job = _submit(client, {name: value for name, value in given.items() if value is not None}, url)
        if follow:
            note(f"job {job['id']}")
            follow_with(client, job["id"], url)
        else:
            put(printable(job["id"]) + "\n")


def _text(name: str, given: str | None) -> str | None:
    """The given text, or standard input for ``-``. Raises CommandError if JSON cannot carry it."""
    try:
        text = given
        if name == "prompt" and given == "-":
            text = sys.stdin.read() if sys.stdin is not None else ""
        (text or "").encode()  # Python turns bytes that are not UTF-8 in arguments into half surrogate pairs
    except UnicodeError:
        raise CommandError(f"The {name} must be UTF-8 text, but has other bytes.", 2) from None
    return text


def _submit(client: httpx2.Client, body: dict[str, Any], url: str) -> dict[str, Any]:
    headers = {"Idempotency-Key": secrets.token_urlsafe(24)}
    return job_in(submit_once(lambda: client.post("/v1/jobs", json=body, headers=headers), url, "job"))
