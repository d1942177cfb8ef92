"""Which origins' pages may call the API from a browser: none, unless the settings name them.

Callers authenticate with an API key in a header, which the page's own script sets. Cookies are never read, so
credentials are not allowed.

Starlette's CORSMiddleware (1.x) does not fit. It sends the allowed methods and headers to origins that may not call,
with status 400 and a text. If all headers are allowed, it repeats the requested header names unchecked, ``<script>``
included. Its preflight responses would lack the request id and the security headers that all our responses have.
"""

import re
from collections.abc import Iterable
from typing import Final

from api.http.security_headers import Headers

_VARY: Final = (b"vary", b"Origin")
_EXPOSED: Final = (
    b"access-control-expose-headers",
    (
        b"Location, Retry-After, X-Request-ID, Request-ID, X-Job-ID, X-Queue-Position, RateLimit, RateLimit-Policy, "
        b"Idempotency-Replayed, Preference-Applied, X-Should-Retry, "
        + b", ".join(
            b"anthropic-ratelimit-%b-%b" % (measured, part)
            for measured in (b"requests", b"tokens")
            for part in (b"limit", b"remaining", b"reset")
        )
    ),
)
_PREFLIGHT: Final[Headers] = [
    (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
    (b"access-control-max-age", b"600"),
]
_HEADER_NAMES: Final = re.compile(rb"[A-Za-z0-9_., -]{1,2048}")


class Cors:
    """Makes the CORS headers. Pure."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self.is_off = not self._origins

    def headers_for(self, origin: bytes | None) -> Headers:
        """The headers of a response to this origin. ``Vary`` is always needed, or a cache would mix responses."""
        if self.is_off or origin is None:
            return [] if self.is_off else [_VARY]
        if b"*" in self._origins:
            return [(b"access-control-allow-origin", b"*"), _EXPOSED]
        if origin not in self._origins:
            return [_VARY]
        return [(b"access-control-allow-origin", origin), _EXPOSED, _VARY]

    def preflight_for(self, origin: bytes | None, wanted_headers: bytes) -> Headers:
        """The headers of the response to a preflight, without permission if the origin may not call. All request
        headers are allowed, since each is checked when it comes.
        """
        allowed = self.headers_for(origin)
        if len(allowed) < 2:
            return allowed
        headers = [*allowed, *_PREFLIGHT]
        if _HEADER_NAMES.fullmatch(wanted_headers):
            headers += [(b"access-control-allow-headers", wanted_headers), (b"vary", b"Access-Control-Request-Headers")]
        return headers
