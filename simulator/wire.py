"""Bytes: HTTP/1.1 heads and chunks, the frames of the Messages stream, and the Step that says when to send them.

Everything here is a pure function. A frame is one server-sent event; `event:` and the data's `type` are always equal,
because the SDKs drop frames where they are not.
"""

import json
from http import HTTPStatus
from typing import NamedTuple

Json = dict[str, object]
Headers = list[tuple[str, str]]


class Step(NamedTuple):
    after_ms: float
    """From when the step before was due: a late step does not delay the ones after it."""
    data: bytes
    tokens: int = 0
    """How many tokens of the answer are in `data`."""
    alone: bool = False
    """Never in one write with its neighbours."""


ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}

ERROR_STATUSES = {error_type: status for status, error_type in ERROR_TYPES.items()}


def error_type_of(status: int) -> str:
    return ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def error_envelope(error_type: str, message: str, request_id: str) -> Json:
    return {"type": "error", "error": {"type": error_type, "message": message}, "request_id": request_id}


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
_encode_ascii = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False).encode


def json_bytes(value: object) -> bytes:
    """JSON as the real API writes it: compact, UTF-8 unescaped."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8; as an escape it is still valid JSON
        return _encode_ascii(value).encode()


def head(status: int, headers: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Simulated')}", *(f"{name}: {text}" for name, text in headers)]
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1")


def whole_response(status: int, headers: Headers, body: bytes) -> bytes:
    return head(status, [*headers, ("content-length", str(len(body)))]) + body


_REASONS = {status.value: status.phrase for status in HTTPStatus}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def frame(event: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), json_bytes(event))


PING = frame({"type": "ping"})

# By kind of block: the delta's type, and the name of the text in it.
DELTAS = {
    "text": ("text_delta", "text"),
    "citations": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool": ("input_json_delta", "partial_json"),
}


def delta_frame(kind: str, index: int, text: str) -> bytes:
    """One token. Written by hand, because under load nearly all frames are these."""
    delta_type, name = DELTAS[kind]
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}\n\n'
        % (index, delta_type.encode(), name.encode(), json_bytes(text))
    )
