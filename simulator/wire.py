"""Pure functions that make bytes: HTTP/1.1 heads, chunks and JSON; and the Step that says when to send them."""

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

Json = dict[str, object]
Headers = list[tuple[str, str]]


class Step(NamedTuple):
    after_ms: float
    """Counted from when the step before was due, so that a late step does not delay the next ones."""
    data: bytes
    tokens: int = 0
    """The number of the answer's tokens in `data`."""
    alone: bool = False
    """Whether it needs a write of its own."""


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
_encode_ascii = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False).encode


def json_bytes(value: object) -> bytes:
    """JSON as the real API writes it: compact, UTF-8 unescaped."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form, but as an escape it is valid JSON
        return _encode_ascii(value).encode()


def head(status: int, headers: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Simulated')}", *(f"{name}: {text}" for name, text in headers)]
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1")


def whole_response(status: int, headers: Headers, body: bytes) -> bytes:
    return head(status, [*headers, ("content-length", str(len(body)))]) + body


_REASONS = {status.value: status.phrase for status in HTTPStatus}


GARBAGE = b"\x00\xff\xfe\x80 simulated garbage \xf0\x28\x8c\x28\n\n"
"""A frame that is not UTF-8."""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def bearer(headers: Mapping[str, str]) -> str:
    """The authorization header's token; empty if there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def numbers_as(value: Json, odd: frozenset[str]) -> Json:
    """The object with its numbers changed as `text-numbers` or `float-numbers` asks, except in a tool's input."""
    if "text-numbers" in odd:
        return _with_numbers(value, str)
    return _with_numbers(value, float) if "float-numbers" in odd else value


def _with_numbers(members: Json, change: Callable[[int], object]) -> Json:
    return {name: value if name == "input" else _changed(value, change) for name, value in members.items()}


def _changed(value: object, change: Callable[[int], object]) -> object:
    match value:
        case bool():
            return value
        case int():
            return change(value)
        case dict():
            return _with_numbers(value, change)
        case list():
            return [_changed(element, change) for element in value]
        case _:
            return value
