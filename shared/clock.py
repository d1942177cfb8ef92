"""Times on the wire: RFC 3339 in UTC with milliseconds outside, whole milliseconds since 1970 inside.

Redis's TIME is the clock of the life cycle; a process's own clock only measures spans.
"""

import re
from datetime import UTC, datetime, timedelta

_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_rfc3339(time_ms: int) -> str:
    """``1795442531482`` → ``2026-11-23T14:02:11.482Z``."""
    moment = _EPOCH + timedelta(milliseconds=time_ms)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"


def from_rfc3339(text: str) -> int:
    """Milliseconds since 1970. Raises ValueError for anything but RFC 3339 with an offset."""
    if not _RFC3339.fullmatch(text):
        raise ValueError("not an RFC 3339 time with an offset")
    return round((datetime.fromisoformat(text.upper()) - _EPOCH) / timedelta(milliseconds=1))
