"""Which pages of other origins may call from a browser: none, unless the settings name them.

Credentials are API keys in a header that a page's own script sets; no cookie is ever looked at, and so none is allowed.

Starlette's CORSMiddleware (1.x) will not do: it says methods and headers to origins that may not call, with a status of 400
and a text; it sends any requested header names back as they came, ``<script>`` included, where all headers are allowed; and
its preflights would lack the request id and the security headers that every response of ours has.
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
    """The origins that may call. Pure: headers in, headers out."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self.is_off = not self._origins

    def headers_for(self, origin: bytes | None) -> Headers:
        """What a response to this origin carries; ``Vary`` also if the origin may not call, or a cache would mix them."""
        if self.is_off or origin is None:
            return [] if self.is_off else [_VARY]
        if b"*" in self._origins:
            return [(b"access-control-allow-origin", b"*"), _EXPOSED]
        if origin not in self._origins:
            return [_VARY]
        return [(b"access-control-allow-origin", origin), _EXPOSED, _VARY]

    def preflight_for(self, origin: bytes | None, wanted_headers: bytes) -> Headers:
        """What the response to a preflight carries; no permission if the origin may not call. Any header may be sent: each is
        checked when it comes.
        """
        allowed = self.headers_for(origin)
        if len(allowed) < 2:
            return allowed
        headers = [*allowed, *_PREFLIGHT]
        if _HEADER_NAMES.fullmatch(wanted_headers):
            headers += [(b"access-control-allow-headers", wanted_headers), (b"vary", b"Access-Control-Request-Headers")]
        return headers
