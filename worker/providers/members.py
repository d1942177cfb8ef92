"""Members of somebody else's JSON, read as far as they are clear (docs/decisions/0012 says which are needed). Pure.

Empty values of every type are the same as an absent member: PHP writes an empty object as ``[]``, others write ``""``.
"""

import json
import math
from typing import Any, Final

import msgspec

from shared.completion import GarbledStream

Members = dict[str, Any]

MISFITS: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What decoding raises for bytes that are no JSON, or not of the type that was asked for."""


class NoUnicode:
    """In the place of a text that cannot be written: with half a surrogate pair, or bytes that are no UTF-8."""


def _null(_: NoUnicode) -> None:
    return None


encode: Final = msgspec.json.Encoder(enc_hook=_null).encode
"""Strict JSON, of anything that was read. What JSON has no word for becomes null, so what is needed must be looked at first."""
_encode_exactly: Final = msgspec.json.Encoder().encode


def any_json(data: bytes, name: str) -> Any:
    """Any value. Raises GarbledStream, naming ``name``."""
    return value_and_json(data, name)[0]


def value_and_json(data: bytes, name: str) -> tuple[Any, bytes]:
    """Any value, and one line of strict JSON for it: ``data`` itself if it is. Raises GarbledStream, naming ``name``.

    Python's servers write NaN and -Infinity, others half a surrogate pair, and mostly where nobody needs it.
    """
    try:
        value = msgspec.json.decode(data)
        return value, data if b"\n" not in data else msgspec.json.format(data, indent=-1)
    except MISFITS:
        pass
    try:
        value = _readable(json.loads(data.decode(errors="surrogateescape"), strict=False))
        return value, encode(value)
    except (ValueError, RecursionError) as error:
        raise GarbledStream(f"{name} is not JSON") from error


def _readable(value: Any) -> Any:
    match value:
        case str():
            return value if _is_unicode(value) else NoUnicode()
        case list():
            return [_readable(inner) for inner in value]
        case dict():
            return {name: _readable(inner) for name, inner in value.items() if _is_unicode(name)}
        case _:
            return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def exact_json(value: Members, name: str) -> str:
    """JSON for an object of which nothing may change. Raises GarbledStream."""
    try:
        data = _encode_exactly(value)
        if msgspec.json.decode(data) == value:
            return data.decode()
    except (*MISFITS, TypeError):
        pass
    raise GarbledStream(f"{name} is no exact JSON")


def odd(name: str, value: object) -> GarbledStream:
    """What is needed is not what it must be: names the member and its type, never its content."""
    return GarbledStream(f"{name} is {kind_of(value)}")


def kind_of(value: object) -> str:
    """The JSON type of a value, for a sentence."""
    match value:
        case None:
            return "missing"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case NoUnicode():
            return "no Unicode text"
        case _:
            return "an object"


def is_empty(value: object) -> bool:
    """Whether a member says nothing: it is absent, null, or empty. 0 and false do say something."""
    return value is None or value in ("", [], {})


def text_in(members: Members, member: str, name: str) -> str:
    """A text that is needed; "" if it is absent. Raises GarbledStream."""
    value = members.get(member)
    if isinstance(value, str):
        return value
    if is_empty(value):
        return ""
    raise odd(name, value)


def object_in(members: Members, member: str, name: str) -> Members:
    """An object that is needed; {} if it is absent. Raises GarbledStream."""
    value = members.get(member)
    if isinstance(value, dict):
        return value
    if is_empty(value):
        return {}
    raise odd(name, value)


def number_of(value: object) -> int | None:
    """A whole number in any spelling whose value is clear (12, 12.0, "12"); None if it is none."""
    if isinstance(value, str) and len(value) <= 20:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else None


def with_members(of: Members, **members: Any) -> Members:
    """``of`` with these members; the very same object if it has them already."""
    if all(name in of and _is_same(of[name], value) for name, value in members.items()):
        return of
    return {**of, **members}


def _is_same(one: object, other: object) -> bool:
    """1, 1.0 and True are equal to each other, and not the same; nor is an object that was made anew."""
    if isinstance(one, dict):
        return one is other
    return type(one) is type(other) and one == other
