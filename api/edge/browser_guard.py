"""Keeps web pages in a browser from calling an API that asks for no key. Installed only with TOKENSPOOL_AUTH=off.

DNS rebinding: if a page's host name is rebound to 127.0.0.1, the browser takes the page and the API for one origin. The
page could read every prompt and spend the operator's money. Its requests still have the page's name in Host, so only
known names are accepted. Cross-site requests: a page of any other site can send requests that change something,
although it cannot read the responses. The browser marks them in Sec-Fetch-Site, or in Origin.
"""

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.errors import error_response
from shared.errors import Forbidden

OWN_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
ANY: Final = "*"
_OPEN: Final = frozenset({"/health/live", "/health/ready"})
"""Health probes call these, under any host name."""
_SAFE: Final = frozenset({"GET", "HEAD"})
_OWN_SITES: Final = frozenset({"same-origin", "same-site", "none"})
"""Values of Sec-Fetch-Site that pass. ``same-site`` is for a frontend in development, on another port."""


class BrowserGuard:
    """Pure ASGI middleware. ``hosts``: the host names that it accepts in addition to this machine's own; ``*`` for any.
    ``origins``: those whose pages may call from a browser (TOKENSPOOL_CORS_ORIGINS).
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], origins: Iterable[str]) -> None:
        self._app = app
        self._hosts = OWN_NAMES | {host.lower() for host in hosts}
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN and (problem := self._problem_of(scope)) is not None:
            await error_response(scope, problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _problem_of(self, scope: Scope) -> Forbidden | None:
        headers = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
        if ANY not in self._hosts and name_of(headers.get(b"host", "")) not in self._hosts:
            return Forbidden(
                "Without keys this API accepts only the names of its own machine: call 127.0.0.1 or localhost, "
                "or add the name to TOKENSPOOL_ALLOWED_HOSTS."
            )
        if self._is_of_another_site(scope["method"], headers):
            return Forbidden(
                "Pages of other sites may not call this API: add their origin to TOKENSPOOL_CORS_ORIGINS, or use keys."
            )
        return None

    def _is_of_another_site(self, method: str, headers: dict[bytes, str]) -> bool:
        origin = headers.get(b"origin")
        if origin in self._origins:
            return False
        site = headers.get(b"sec-fetch-site")
        if site is None:  # no browser, or an old one
            return origin is not None and name_of(urlsplit(origin).netloc) not in self._hosts and ANY not in self._hosts
        # A followed link: the page that has it cannot read the response.
        is_navigation = method in _SAFE and headers.get(b"sec-fetch-mode") == "navigate"
        return site not in _OWN_SITES and not is_navigation


def name_of(host: str) -> str:
    """``localhost:8000`` → ``localhost``; an address in brackets keeps them."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
