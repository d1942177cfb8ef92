"""How the command line talks to the API: one HTTP client, and every way it can fail as one sentence."""

import json
import os
from typing import Any
from urllib.parse import urlsplit

import httpx2

from cli.errors import CommandError
from cli.terminal import one_line
from shared.loopback import is_loopback

# Longer than the API's 15 s between pings: a silent connection is a dead one.
_READ_TIMEOUT_S = 40
_CONNECT_TIMEOUT_S = 5


def open_client(url: str) -> httpx2.Client:
    """A client whose requests are relative to ``url`` and carry TOKENSPOOL_API_KEY, if that is set.

    Raises CommandError when the URL is none, or something else in the environment cannot be used.
    """
    is_ours = is_loopback(_host_of(url))
    key = os.environ.get("TOKENSPOOL_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise CommandError("TOKENSPOOL_API_KEY must be a key: one line of ASCII, but is something else.", 2)
    try:
        return httpx2.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            trust_env=not is_ours,  # a proxy of the environment cannot reach our own machine
            verify=not (is_ours and url.lower().startswith("http:")),  # reading the certificates is most of our start
        )
    except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
        message = f"A variable for proxies or certificates (ALL_PROXY, SSL_CERT_FILE, …) cannot be used: {error}"
        raise CommandError(one_line(message), 2) from None


def _host_of(url: str) -> str:
    """The host of an address that can be one. Raises CommandError."""
    try:
        httpx2.URL(url)
        parts = urlsplit(url)
        _ = parts.port
        host = parts.hostname or ""
        is_address = parts.scheme in ("http", "https") and bool(host.encode("idna"))
    except (ValueError, httpx2.InvalidURL):
        is_address, host = False, ""
    if not is_address:
        raise CommandError(f"TOKENSPOOL_URL must be the http:// or https:// address of the API, but is {url!r}.", 2)
    return host


def nobody_answers(url: str) -> CommandError:
    """What to say when the API cannot be reached at all."""
    return CommandError(
        f"No tokenspool answers at {url}: start one with `tokenspool dev`, or say where it is with --url or "
        "TOKENSPOOL_URL."
    )


def is_something_else(response: httpx2.Response) -> CommandError:
    """What to say when an answer is none of our API's."""
    return CommandError(f"The server at {response.url.host} answered {response.status_code}; is it a tokenspool API?")


def is_ours(response: httpx2.Response) -> bool:
    """Whether a refusal is a problem document. Its body must have been read."""
    return "detail" in json_object(response.content)


def refusal(response: httpx2.Response) -> CommandError:
    """What an answer that is no success says, as one sentence. Its body must have been read."""
    if not is_ours(response):
        return is_something_else(response)
    problem = json_object(response.content)
    fields = problem.get("errors")
    details = [
        f"{field.get('pointer')}: {field.get('detail')}."
        for field in (fields if isinstance(fields, list) else [])
        if isinstance(field, dict)
    ]
    hint = " Set TOKENSPOOL_API_KEY to a valid key." if response.status_code == 401 else ""
    return CommandError(one_line(" ".join([str(problem["detail"]), *details])) + hint)


def job_in(response: httpx2.Response) -> dict[str, Any]:
    """The job that a successful answer holds. Its body must have been read. Raises CommandError when there is none."""
    job = json_object(response.content)
    if not (isinstance(job.get("id"), str) and isinstance(job.get("status"), str)):
        raise is_something_else(response)
    return job


def json_object(content: str | bytes) -> dict[str, Any]:
    """The object that a piece of JSON is; an empty one if it is something else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
