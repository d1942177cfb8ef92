"""How the command line calls the API: one HTTP client, and each failure as one sentence."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2

from cli.errors import CommandError
from cli.terminal import one_line
from shared.loopback import is_loopback

# Longer than the API's 15 s between pings: a silent connection is a dead one.
_READ_TIMEOUT_S = 40
_CONNECT_TIMEOUT_S = 5
_ATTEMPTS = 5
_MOST_PAGE = 100


def open_client(url: str) -> httpx2.Client:
    """A client whose requests are relative to ``url`` and carry TOKENSPOOL_API_KEY, if that is set.

    Raises CommandError if the URL is not valid, or if another variable of the environment cannot be used.
    """
    is_ours = is_loopback(_host_of(url))
    key = os.environ.get("TOKENSPOOL_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise CommandError("TOKENSPOOL_API_KEY must be one line of printable ASCII, but is something else.", 2)
    try:
        return httpx2.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            trust_env=not is_ours,  # a proxy of the environment cannot reach our own machine
            verify=not (is_ours and url.lower().startswith("http:")),  # reading the certificates is most of our start
        )
    except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
        message = f"Cannot use a variable for proxies or certificates (ALL_PROXY, SSL_CERT_FILE, …): {error}"
        raise CommandError(one_line(message), 2) from None


def submit_once(send: Callable[[], httpx2.Response], url: str, what: str) -> httpx2.Response:
    """The response to a submit, which is sent again while its connection breaks. Raises CommandError.

    Each send must carry the same Idempotency-Key: a connection may break after the submit was taken.
    """
    return _sent(send, url, f"it is not known whether the {what} was submitted.")


def call(client: httpx2.Client, url: str, method: str, path: str, **request: Any) -> dict[str, Any]:
    """The object in the response to a request that may arrive twice; empty after a 204. Raises CommandError."""
    response = _sent(lambda: client.request(method, path, **request), url, "run the command again.")
    if response.status_code == 204:
        return {}
    if not (found := json_object(response.content)):
        raise not_tokenspool(response)
    return found


def pages(
    client: httpx2.Client, url: str, path: str, query: Mapping[str, Any], *, most: int
) -> Iterator[dict[str, Any]]:
    """The first ``most`` objects of a list that comes in pages. Raises CommandError."""
    after: dict[str, str] = {}
    left = most
    while True:
        page = call(client, url, "GET", path, params={**query, **after, "limit": min(left, _MOST_PAGE)})
        data = page.get("data")
        found = [item for item in (data if isinstance(data, list) else []) if isinstance(item, dict)][:left]
        yield from found
        left -= len(found)
        if not (left and page.get("next")):
            return
        after = {"after": page["next"]}


def _sent(send: Callable[[], httpx2.Response], url: str, if_lost: str) -> httpx2.Response:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            response = send()
        except httpx2.RequestError as error:
            if attempt == 1 and isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                raise unreachable(url) from None
        else:
            if response.status_code not in (200, 202, 204):
                raise refusal(response)
            return response
        if attempt < _ATTEMPTS:
            time.sleep(0.2 * 2**attempt)
    raise CommandError(f"The connection to {url} broke {_ATTEMPTS} times; {if_lost}")


def _host_of(url: str) -> str:
    """The host of a URL. Raises CommandError if it is not one of the API."""
    try:
        httpx2.URL(url)
        parts = urlsplit(url)
        _ = parts.port
        host = parts.hostname or ""
        is_address = parts.scheme in ("http", "https") and bool(host.encode("idna"))
    except (ValueError, httpx2.InvalidURL):
        is_address, host = False, ""
    if not is_address:
        raise CommandError(f"TOKENSPOOL_URL must be the http:// or https:// URL of the API, but is {url!r}.", 2)
    return host


def unreachable(url: str) -> CommandError:
    """The error for an API that cannot be reached."""
    return CommandError(
        f"Cannot reach tokenspool at {url}: start it with `tokenspool dev`, or give its URL with --url or TOKENSPOOL_URL."
    )


def not_tokenspool(response: httpx2.Response) -> CommandError:
    """The error for a response that is not from our API."""
    return CommandError(
        f"The server at {response.url.host} sent an unexpected response ({response.status_code}): check that it is tokenspool."
    )


def is_ours(response: httpx2.Response) -> bool:
    """Whether a refusal is a problem document. Its body must have been read."""
    return "detail" in json_object(response.content)


def refusal(response: httpx2.Response) -> CommandError:
    """The problem of an error response, as one sentence. Its body must have been read."""
    if not is_ours(response):
        return not_tokenspool(response)
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
    """The job, or batch, in a successful response whose body has been read. Raises CommandError if there is none."""
    job = json_object(response.content)
    if not (isinstance(job.get("id"), str) and isinstance(job.get("status"), str)):
        raise not_tokenspool(response)
    return job


def json_object(content: str | bytes) -> dict[str, Any]:
    """The object in some JSON; an empty one if it is anything else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
