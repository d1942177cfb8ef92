"""How commands print what they found: columns and fields for people, JSON for programs.

Every line for people fits WIDTH characters, unless one value alone is longer; times are local, or relative to this machine's clock.
"""

import json
from collections.abc import Callable, Container, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cli.terminal import note, one_line, put

WIDTH: Final = 100
_GAP: Final = "  "
_NARROWEST: Final = 5
_SPANS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
NOTHING: Final = "-"


def put_json(value: Any) -> None:
    """One line of ASCII, so that nothing in it can be an escape sequence for the terminal."""
    put(json.dumps(value) + "\n")


def put_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Container[str] = (), cut: Container[str] = ()
) -> None:
    """Aligned columns, those of ``numbers`` to the right. If they are too wide, those of ``cut`` are, the widest first."""
    lines = [[one_line(cell) or NOTHING for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    may_be_cut = [column for column, name in enumerate(head) if name in cut]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > WIDTH:
        widest = max(may_be_cut, key=widths.__getitem__, default=0)
        if not may_be_cut or widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    for line in lines:
        cells = (
            _cut(cell, width).rjust(width) if name in numbers else _cut(cell, width).ljust(width)
            for name, cell, width in zip(head, line, widths, strict=True)
        )
        put(_GAP.join(cells).rstrip() + "\n")


def put_rows(
    what: str,
    head: Sequence[str],
    found: Iterable[dict[str, Any]],
    row_of: Callable[[dict[str, Any]], Sequence[str]],
    *,
    limit: int,
    as_json: bool,
    numbers: Container[str] = (),
    cut: Container[str] = (),
) -> None:
    """Objects as a table, or each as a line of JSON. ``what``: what they are, in the plural; ``limit``: how many were asked for."""
    if as_json:
        for item in found:
            put_json(item)
        return
    rows = [row_of(item) for item in found]
    if rows:
        put_table(head, rows, numbers=numbers, cut=cut)
    if len(rows) == limit:
        note(f"the first {limit} {what} are shown: --limit N shows more")
    elif not rows:
        note(f"there are no such {what}")


def put_fields(fields: Iterable[tuple[str, str]]) -> None:
    """A line for each field that has a value."""
    shown = [(name, one_line(value)) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0)
    put("".join(f"{name.ljust(width)}{_GAP}{value}\n" for name, value in shown))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def dollars(usd: float | None) -> str:
    """``$12.30``, ``$0.0421``, ``$0.000042``; empty if it is unknown."""
    if usd is None:
        return ""
    return f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${usd:.{4 if usd >= 0.01 else 6}f}"


def span(seconds: float) -> str:
    """``40 ms``, ``4.2 s``, ``12 s``, ``3 min``, ``2 h``: in the largest unit of which there are two."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    length, unit = next((length, unit) for length, unit in _SPANS if seconds >= 2 * length or length == 1)
    return f"{seconds / length:.0f} {unit}"


def relative(time: str | None) -> str:
    """An RFC 3339 time as ``3 min ago`` or ``in 12 s``; empty for None."""
    if (moment := _moment(time)) is None:
        return time or ""
    seconds = (datetime.now(UTC) - moment) / timedelta(seconds=1)
    length = f"{abs(seconds):.0f} s" if abs(seconds) < 10 else span(abs(seconds))
    return f"{length} ago" if seconds > 0 else f"in {length}"


def local(time: str | None) -> str:
    """An RFC 3339 time as ``30 Nov 2026 21:14:03 (3 min ago)``; empty for None."""
    moment = _moment(time)
    return time or "" if moment is None else f"{moment.astimezone():%-d %b %Y %H:%M:%S} ({relative(time)})"


def _moment(time: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(time or "")
    except ValueError:
        return None
