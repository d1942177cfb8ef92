"""The security headers of every response: a browser must not run, frame, sniff or keep it."""

from typing import Final

Headers = list[tuple[bytes, bytes]]

NO_STORE: Final = (b"cache-control", b"no-store")
CONTENT_SECURITY_POLICY: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")

ALWAYS: Final[Headers] = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
PRIVATE: Final[Headers] = [*ALWAYS, CONTENT_SECURITY_POLICY, NO_STORE]
"""For a response that is no page and has no ``Cache-Control`` of its own."""


def security_headers(headers: Headers) -> Headers:
    """The headers to add to a response with these headers. A page has its own policy, and may allow caching."""
    has_policy = has_cache = False
    for name, _ in headers:
        if name == b"cache-control":
            has_cache = True
        elif name == b"content-security-policy":
            has_policy = True
    if not has_policy:
        return ALWAYS_WITH_POLICY if has_cache else PRIVATE
    return ALWAYS if has_cache else [*ALWAYS, NO_STORE]


ALWAYS_WITH_POLICY: Final[Headers] = [*ALWAYS, CONTENT_SECURITY_POLICY]
