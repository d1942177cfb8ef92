"""What an upstream says when it refuses: in a response, or in the place of an answer. Pure.

Each server has its own shape: ``{"error": {…}}``, ``{"error": "text"}``, ``{"message": …}``, ``{"detail": …}`` (a text, or
FastAPI's list), a plain text, or a page of a proxy. Its words reach the caller, without markup.
"""

import re
from typing import Any, Final

from shared.completion import GarbledStream
from worker.outcome import Refusal
from worker.providers.members import Members, any_json, is_empty, number_of

_MOST_CHARS: Final = 2_000
"""Of a page that is looked through; what the caller gets of it is cut further."""
_UNSEEN: Final = re.compile(r"<(script|style|head)\b.*?(</\1\s*>|$)|<[^>]*(>|$)", re.DOTALL | re.IGNORECASE)
_TITLE: Final = re.compile(r"<title[^>]*>([^<]+)", re.IGNORECASE)


def page_refusal(body: bytes, *, status: int | None = None, retry_after_s: float | None = None) -> Refusal:
    """From the body of a response that refuses, or the data of an error event: whatever it is."""
    try:
        page: object = any_json(body, "a page")
    except GarbledStream:
        page = body[: 4 * _MOST_CHARS].decode(errors="replace")
    return refusal_of(page, status=status, retry_after_s=retry_after_s)


def is_refusal(value: Members) -> bool:
    """Whether what came in the place of an answer is an error: by its ``error`` member, or because it calls itself one."""
    return not is_empty(value.get("error")) or "error" in (value.get("type"), value.get("object"))


def refusal_of(said: object, *, status: int | None = None, retry_after_s: float | None = None) -> Refusal:
    """From a decoded body, an event's data, or the ``error`` member of a chunk.

    Without a status of its own (inside a stream, or with 200), a ``code`` that is a number is one, as vLLM, llama.cpp and
    OpenRouter send it.
    """
    if isinstance(said, list) and said and isinstance(said[0], dict):  # Google's
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
    )  # of Spring's, ``error`` is only the status's name
    return Refusal(
        status, _type_of(error), message, retry_after_s, code if isinstance(code, str) and number is None else None
    )


def _type_of(error: Members) -> str | None:
    """Its own word for what went wrong. ``error`` is only what all of them are called."""
    value = error.get("type")
    return value if isinstance(value, str) and value != "error" else None


def _words(said: Any) -> str:
    """As people read it: of a page its title, or what it shows; of FastAPI's list each place and what is wrong there."""
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
