"""Reads members of an upstream's JSON if their value is clear (docs/decisions/0012 lists the needed ones). Pure.

An empty value of any type counts as an absent member: PHP writes an empty object as ``[]``, others write ``""``.
"""

import json
import math
from typing import Any, Final

import msgspec

from shared.completion import GarbledStream

Members = dict[str, Any]

MISFITS: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What decoding raises for bytes that are not JSON, or not of the requested type."""


class NoUnicode:
    """Replaces a text that cannot be encoded: one with a lone surrogate, or with bytes that are not UTF-8."""


def _null(_: NoUnicode) -> None:
    return None


encode: Final = msgspec.json.Encoder(enc_hook=_null).encode
"""Encodes any decoded value as strict JSON. Values outside JSON become null, so check what is needed first."""
_encode_exactly: Final = msgspec.json.Encoder().encode


def any_json(data: bytes, name: str) -> Any:
    """Decodes any value. Raises GarbledStream, which names ``name``."""
    return value_and_json(data, name)[0]


def value_and_json(data: bytes, name: str) -> tuple[Any, bytes]:
    """Decodes any value; also returns it as one line of strict JSON, which is ``data`` itself if that is strict.

    Servers in Python write NaN and -Infinity, others a lone surrogate, mostly in unneeded members. Raises
    GarbledStream, which names ``name``.
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
    """Encodes an object that must not change. Raises GarbledStream if it would."""
    try:
        data = _encode_exactly(value)
        if msgspec.json.decode(data) == value:
            return data.decode()
    except (*MISFITS, TypeError):
        pass
    raise GarbledStream(f"{name} is no exact JSON")


def odd(name: str, value: object) -> GarbledStream:
    """The error for a needed member of a wrong type: it names the member and the type, never the content."""
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
    """Whether a member is absent, null or empty. 0 and false are not empty."""
    return value is None or value in ("", [], {})


def text_in(members: Members, member: str, name: str) -> str:
    """A needed text; "" if it is absent. Raises GarbledStream."""
    value = members.get(member)
    if isinstance(value, str):
        return value
    if is_empty(value):
        return ""
    raise odd(name, value)


def object_in(members: Members, member: str, name: str) -> Members:
    """A needed object; {} if it is absent. Raises GarbledStream."""
    value = members.get(member)
    if isinstance(value, dict):
        return value
    if is_empty(value):
        return {}
    raise odd(name, value)


def number_of(value: object) -> int | None:
    """A whole number in any form whose value is clear (12, 12.0, "12"); None for anything else."""
    if isinstance(value, str) and len(value) <= 20:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else None


def with_members(of: Members, **members: Any) -> Members:
    """``of`` with these members; ``of`` itself if it has them already."""
    if all(name in of and _is_same(of[name], value) for name, value in members.items()):
        return of
    return {**of, **members}


def _is_same(one: object, other: object) -> bool:
    """1, 1.0 and True are equal in Python, but not the same here; nor is a new object with equal members."""
    if isinstance(one, dict):
        return one is other
    return type(one) is type(other) and one == other
