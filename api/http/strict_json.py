"""JSON, read strictly. Pure: it knows no request, so that another process can do it too.

Strict is what interoperable JSON (RFC 8259, RFC 7493) leaves open or forbids: UTF-8 alone and no BOM, no NaN and no
number beyond a double, no half of a surrogate pair, no NUL, no member twice, and nesting that nobody needs. What got
through here can be encoded again. FastAPI's own reading takes all of these, responds with 500 to some, and echoes the body of
others (measured, 0.165).
"""

import json
import math
import re
from typing import Any, Final

import msgspec

from api.http.invalid import BODY, is_name, pointer, refuse
from shared.errors import FieldError, InvalidRequest

MOST_DEPTH: Final = 128
MOST_VALUES: Final = 100_000
"""A body of 32 MB could hold ten million lists: 4 s in which nothing else runs in this process, and a gigabyte (measured)."""
_PIECE_BYTES: Final = 1 << 20

_PLACE: Final = re.compile(r"\(byte (\d+)\)$")


def _finite(text: str) -> float:
    """msgspec itself takes 9.5 µs for a float with a large exponent, Python's own reading 0.1 (measured, msgspec 0.22)."""
    value = float(text)
    if not math.isfinite(value):  # 1e400; encoded again it would be null
        raise ValueError("out of range")
    return value


_decode: Final = msgspec.json.Decoder(float_hook=_finite).decode


def decode(raw: bytes) -> Any:
    """Strict JSON as plain data. Raises InvalidRequest, which names the place and nothing that stands there."""
    if len(raw) > MOST_VALUES and _has_many_commas(raw):
        _refuse_many_values(raw)
    try:
        data = _decode(raw)
    except msgspec.ValidationError:
        raise refuse(FieldError(BODY, "has a number that is out of range")) from None
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise refuse(FieldError(BODY, "must be UTF-8")) from None
    except msgspec.DecodeError as error:
        raise refuse(FieldError(BODY, _what_is_wrong(raw, str(error)))) from None
    if raw.count(b"{") + raw.count(b"[") > MOST_DEPTH or b"\\u0000" in raw:
        _refuse_depth_and_nul(data)
    members = _members_of(data)
    # The second count is for texts with colons: without the texts each is a member, and one too many stands there twice.
    if raw.count(b":") != members and b"".join(_without_escapes(raw).split(b'"')[::2]).count(b":") != members:
        _refuse_twins(raw)
    return data


def _what_is_wrong(raw: bytes, error: str) -> str:
    if not raw.strip():
        return "must be a JSON object, but the body is empty"
    place = _PLACE.search(error)
    return (
        f"must be JSON; it is not valid at byte {place[1]}" if place else "must be JSON; it is not valid, or breaks off"
    )


def _has_many_commas(raw: bytes) -> bool:
    """Or brackets, in texts or not. In pieces: what is full of them shows it at once, and counting them all takes long."""
    count = 0
    for place in range(0, len(raw), _PIECE_BYTES):
        end = place + _PIECE_BYTES
        count += raw.count(b",", place, end) + raw.count(b"[", place, end) + raw.count(b"{", place, end)
        if count > MOST_VALUES:
            return True
    return False


def _refuse_many_values(raw: bytes) -> None:
    """Counts what stands outside of texts. What is no JSON may be counted wrongly; it is refused either way."""
    for part in (raw[: 2 * _PIECE_BYTES], raw):  # a part is often enough
        bare = _without_escapes(part)
        # Each text is a value or a name; more of them than that need not be taken apart.
        if bare.count(b'"') <= 4 * MOST_VALUES:
            outside = b"".join(bare.split(b'"')[::2])
            if outside.count(b",") + outside.count(b"[") + outside.count(b"{") <= MOST_VALUES:
                continue
        raise refuse(FieldError(BODY, f"must not hold more than {MOST_VALUES} values"))


def _too_deep() -> InvalidRequest:
    return refuse(FieldError(BODY, f"must not be nested deeper than {MOST_DEPTH}"))


def _refuse_depth_and_nul(data: Any) -> None:
    open_nodes: list[tuple[Any, int, str]] = [(data, 1, BODY)]
    while open_nodes:
        node, depth, where = open_nodes.pop()
        if isinstance(node, str):
            if "\0" in node:
                raise refuse(FieldError(where, "must not have the character U+0000"))
        elif isinstance(node, dict | list):
            if depth > MOST_DEPTH:
                raise _too_deep()
            if isinstance(node, list):
                open_nodes += [(child, depth + 1, where) for child in node]
                continue
            for name, child in node.items():
                open_nodes.append((name, depth + 1, where))
                open_nodes.append((child, depth + 1, pointer(where, name) if depth < 3 else where))


def _members_of(data: Any) -> int:
    """How many members all the objects have together."""
    count = 0
    open_nodes = [data]
    while open_nodes:
        node = open_nodes.pop()
        if type(node) is dict:
            count += len(node)
            open_nodes += [child for child in node.values() if type(child) is dict or type(child) is list]
        elif type(node) is list:
            open_nodes += [child for child in node if type(child) is dict or type(child) is list]
    return count


def _without_escapes(raw: bytes) -> bytes:
    """So that each quote is the beginning or the end of a text."""
    if b"\\" not in raw:  # a twentieth of the time that it takes to find none of the two
        return raw
    return raw.replace(b"\\\\", b"").replace(b'\\"', b"")


def _refuse_twins(raw: bytes) -> None:
    _twin_finder.decode(raw.decode())


def _object_without_twins(members: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in members:
        if name in seen:
            shown = f" ({name})" if is_name(name) else ""
            raise refuse(FieldError(BODY, f"must not have a member twice{shown}"))
        seen.add(name)


# Only the standard library shows the members before they become a dict; on 400 bytes it takes 6 µs, msgspec 1.
_twin_finder: Final = json.JSONDecoder(object_pairs_hook=_object_without_twins, parse_int=str, parse_float=str)
