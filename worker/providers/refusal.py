"""Reads what an upstream says when it refuses: in an error response, or in place of an answer. Pure.

Each server has its own form: ``{"error": {…}}``, ``{"error": "text"}``, ``{"message": …}``, ``{"detail": …}`` (a text, or
FastAPI's list), a plain text, or a page of a proxy. The message reaches the caller, without markup.
"""

import re
from typing import Any, Final

from shared.completion import GarbledStream
from worker.outcome import Refusal
from worker.providers.members import Members, any_json, is_empty, number_of

_MOST_CHARS: Final = 2_000
"""How much of a page is searched for a message; what the caller gets is cut further."""
_UNSEEN: Final = re.compile(r"<(script|style|head)\b.*?(</\1\s*>|$)|<[^>]*(>|$)", re.DOTALL | re.IGNORECASE)
_TITLE: Final = re.compile(r"<title[^>]*>([^<]+)", re.IGNORECASE)


def page_refusal(body: bytes, *, status: int | None = None, retry_after_s: float | None = None) -> Refusal:
    """The refusal in the body of an error response, or in the data of an error event, in whatever form."""
    try:
        page: object = any_json(body, "a page")
    except GarbledStream:
        page = body[: 4 * _MOST_CHARS].decode(errors="replace")
    return refusal_of(page, status=status, retry_after_s=retry_after_s)


def is_refusal(value: Members) -> bool:
    """Whether what came in place of an answer is an error: it has an ``error`` member, or its type is ``error``."""
    return not is_empty(value.get("error")) or "error" in (value.get("type"), value.get("object"))


def refusal_of(said: object, *, status: int | None = None, retry_after_s: float | None = None) -> Refusal:
    """The refusal in a decoded body, an event's data, or the ``error`` member of a chunk.

    If there is no error status (inside a stream, or with 200), a ``code`` that is a number is the status: vLLM, llama.cpp
    and OpenRouter send it so.
    """
    if isinstance(said, list) and said and isinstance(said[0], dict):  # Google sends a list
        said = said[0]
    if not isinstance(said, dict):
        return Refusal(status, None, _words(said), retry_after_s)
    inner = said.get("error")
    error: Members = inner if isinstance(inner, dict) else said
    code = error.get("code")
    number = number_of(code)
    if status in (None, 200) and number is not None and 400 <= number < 600:
        status = number
    message = _words(
        error.get("message") or error.get("detail") or inner
    )  # in Spring's format, ``error`` is only the status's name
    return Refusal(
        status, _type_of(error), message, retry_after_s, code if isinstance(code, str) and number is None else None
    )


def _type_of(error: Members) -> str | None:
    """The error's own type. ``error`` says nothing, since all of them have that."""
    value = error.get("type")
    return value if isinstance(value, str) and value != "error" else None


def _words(said: Any) -> str:
    """The message as a text: a page's title or what it shows; for FastAPI's list each place and what is wrong there."""
    match said:
        case str():
            return _shown(said)
        case list():
            return "; ".join(filter(None, map(_words, said[:10])))
        case {"msg": str() as message, "loc": list() as place}:
            return f"{'.'.join(str(part) for part in place if isinstance(part, (str, int)))}: {_shown(message)}"
        case {"message": inside} | {"msg": inside} | {"detail": inside}:
            return _words(inside)
        case _:
            return ""


def _shown(text: str) -> str:
    text = text[:_MOST_CHARS].strip()
    if text.startswith("<"):
        title = _TITLE.search(text)
        text = title[1] if title else _UNSEEN.sub(" ", text)
    return " ".join(text.split())
