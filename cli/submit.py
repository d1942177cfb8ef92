"""`tokenspool submit`: one prompt becomes one job, also on a network that breaks."""

import secrets
import sys
from collections.abc import Mapping
from typing import Any

import httpx2

from cli.api_client import job_in, open_client, submit_once
from cli.errors import CommandError, utf8
from cli.follow import follow_with
from cli.job_options import Options, as_body
from cli.output import put_json
from cli.terminal import note, printable, put


def submit_prompt(
    prompt: str,
    given: Mapping[str, str | int | None],
    options: Options,
    *,
    follow: bool,
    key: str | None,
    as_json: bool,
    url: str,
) -> None:
    """Print the job's id, or with ``follow`` its answer; the id then goes to standard error. Raises CommandError.

    ``given``: parameters of the LLM, None for those that were not given. ``key``: an Idempotency-Key.
    """
    body: dict[str, Any] = {"prompt": _prompt_of(prompt)}
    body |= {
        name: utf8(name, value) if isinstance(value, str) else value
        for name, value in given.items()
        if value is not None
    }
    if options:
        body["job"] = as_body(options)
    with open_client(url) as client:
        job = _submit(client, body, url, key or secrets.token_urlsafe(24))
        if follow:
            note(f"job {job['id']}")
            follow_with(client, job["id"], url, as_json=as_json)
        elif as_json:
            put_json(job)
        else:
            put(printable(job["id"]) + "\n")


def _prompt_of(given: str) -> str:
    """The given text, or standard input for ``-``. Raises CommandError if it is not text."""
    try:
        return utf8("prompt", given if given != "-" or sys.stdin is None else sys.stdin.read())
    except UnicodeError:
        raise CommandError("The prompt must be UTF-8 text, but has other bytes.", 2) from None


def _submit(client: httpx2.Client, body: dict[str, Any], url: str, key: str) -> dict[str, Any]:
    headers = {"Idempotency-Key": key}
    return job_in(submit_once(lambda: client.post("/v1/jobs", json=body, headers=headers), url, "job"))
