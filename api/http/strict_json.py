"""Reads JSON strictly. Pure, and without a request, so that another process can run it too.

Strict means that what interoperable JSON (RFC 8259, RFC 7493) leaves open or forbids is refused: any encoding but
UTF-8, a BOM, NaN, numbers beyond a double, half of a surrogate pair, NUL, a member twice, and nesting that nobody
needs. What is accepted can be encoded again. FastAPI's own reader accepts all of these; some then become a 500, and of
others the body is echoed (measured, FastAPI 0.165).
"""

import json
import math
import re
import sys
from typing import Any, Final

import msgspec

from api.http.invalid import BODY, is_name, pointer, refuse
from shared.errors import FieldError, InvalidRequest

MOST_DEPTH: Final = 128
MOST_VALUES: Final = 100_000
"""A body of 32 MB could hold ten million lists: 4 s in which nothing else runs here, and a gigabyte (measured)."""
_PIECE_BYTES: Final = 1 << 20

_PLACE: Final = re.compile(r"\(byte (\d+)\)$")


def _finite(text: str) -> float:
    """Used because msgspec's own reader takes 9.5 µs for a large exponent, Python's 0.1 µs (measured, msgspec 0.22)."""
    value = float(text)
    if not math.isfinite(value):  # 1e400; encoded again it would be null
        raise ValueError("out of range")
    return value


_decode: Final = msgspec.json.Decoder(float_hook=_finite).decode
sys.set_int_max_str_digits(sys.int_info.str_digits_check_threshold)
"""Reading an integer takes time by the square of its digits: 120 of 4,000 digits took 121 ms, of 640 digits 0.6 (measured)."""


def decode(raw: bytes) -> Any:
    """Strict JSON as plain data. Raises InvalidRequest, which names the place of the error but no content."""
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
    # Outside of texts each colon is a member. If there are more than the dicts have, one came twice. The first count is
    # cheap, but has the colons in texts too.
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
    """Whether it has too many commas and brackets, in texts or not. Counts in pieces, since counting all takes long."""
    count = 0
    for place in range(0, len(raw), _PIECE_BYTES):
        end = place + _PIECE_BYTES
        count += raw.count(b",", place, end) + raw.count(b"[", place, end) + raw.count(b"{", place, end)
        if count > MOST_VALUES:
            return True
    return False


def _refuse_many_values(raw: bytes) -> None:
    """Counts commas and brackets outside of texts. It may count wrongly in what is no JSON: that is refused anyway."""
    for part in (raw[: 2 * _PIECE_BYTES], raw):  # a part is often enough
        bare = _without_escapes(part)
        # Each text is a value or a name. With more of them than this there are too many values, whatever is outside.
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
                open_nodes.append((child, depth + 1, pointer(where, name) if depth == 1 else where))


def _members_of(data: Any) -> int:
    """How many members all objects have together."""
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
    """Without escapes each quote begins or ends a text."""
    if b"\\" not in raw:  # 20 times as fast as the two replacements that find nothing
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


# Only the standard library shows members before they become a dict. It takes 6 µs for 400 bytes, msgspec takes 1 µs.
_twin_finder: Final = json.JSONDecoder(object_pairs_hook=_object_without_twins, parse_int=str, parse_float=str)
