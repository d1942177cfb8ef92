"""`tokenspool submit`: one prompt becomes one job, whatever the network does meanwhile."""

import secrets
import sys
import time
from typing import Any

import httpx2

from cli.api_client import nobody_answers, open_client, refusal
from cli.errors import CommandError
from cli.follow import follow_with
from cli.terminal import tell

_ATTEMPTS = 5


def submit_prompt(prompt: str, *, follow: bool, model: str | None, max_tokens: int | None, url: str) -> None:
    """Print the job's id, or with ``follow`` its answer; the id then goes to standard error. Raises CommandError."""
    if prompt == "-":
        prompt = sys.stdin.read()
    given = {"prompt": prompt, "model": model, "max_tokens": max_tokens}
    with open_client(url) as client:
        job = _submit(client, {name: value for name, value in given.items() if value is not None}, url)
        if follow:
            tell(f"job {job['id']}")
            follow_with(client, str(job["id"]), url)
        else:
            print(job["id"])


def _submit(client: httpx2.Client, body: dict[str, Any], url: str) -> dict[str, Any]:
    # The key makes a repeat harmless: a connection that broke after the job was taken must not make a second one.
    headers = {"Idempotency-Key": secrets.token_urlsafe(24)}
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            response = client.post("/v1/jobs", json=body, headers=headers)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            raise nobody_answers(url) from None
        except httpx2.TransportError:
            if attempt == _ATTEMPTS:
                raise CommandError(
                    f"The connection to {url} broke {_ATTEMPTS} times; nothing is known of the job."
                ) from None
            time.sleep(0.2 * 2**attempt)
            continue
        if response.status_code not in (200, 202):
            raise refusal(response)
        job: dict[str, Any] = response.json()
        return job
    raise AssertionError("unreachable")
