"""How the command line talks to the API: one HTTP client, and every way it can fail as one sentence."""

import os
from typing import Any
from urllib.parse import urlsplit

import httpx2

from cli.errors import CommandError
from cli.serve import is_loopback
from cli.terminal import printable

# Longer than the API's 15 s between pings: a silent connection is a dead one.
_READ_TIMEOUT_S = 40
_CONNECT_TIMEOUT_S = 5


def open_client(url: str) -> httpx2.Client:
    """A client whose requests are relative to ``url`` and carry TOKENSPOOL_API_KEY, if that is set.

    Raises CommandError when the URL is none.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CommandError(f"TOKENSPOOL_URL must be the http:// or https:// address of the API, but is {url!r}.", 2)
    key = os.environ.get("TOKENSPOOL_API_KEY")
    return httpx2.Client(
        base_url=url.rstrip("/"),
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx2.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
        trust_env=not is_loopback(parts.hostname),  # a proxy of the environment cannot reach our own machine
    )


def nobody_answers(url: str) -> CommandError:
    """What to say when the API cannot be reached at all."""
    return CommandError(
        f"No tokenspool answers at {url}: start one with `tokenspool dev`, or say where it is with --url or "
        "TOKENSPOOL_URL."
    )


def refusal(response: httpx2.Response) -> CommandError:
    """What an answer that is no success says, as one sentence. Its body must have been read."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "detail" not in problem:
        return CommandError(
            f"The server at {response.url.host} answered {response.status_code}; is it a tokenspool API?"
        )
    fields: list[Any] = problem.get("errors") or []
    detail = " ".join(
        [str(problem["detail"]), *(f"{field.get('pointer')}: {field.get('detail')}." for field in fields)]
    )
    hint = " Set TOKENSPOOL_API_KEY to a valid key." if response.status_code == 401 else ""
    return CommandError(printable(detail.replace("\n", " ")) + hint)
