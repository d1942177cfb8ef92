"""What a request's headers ask for. A header that may be sent only once is refused if it comes twice: which
is meant?
"""

import re
from typing import Final

from starlette.requests import Request
from starlette.types import Scope

from api.http.invalid import refuse
from shared.errors import FieldError, NotAcceptable

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
MOST_WAIT_S: Final = 60

_QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"', re.ASCII)
_PLAIN: Final = re.compile(r'"[!#-\[\]-~]{1,255}"|[!#-\[\]-~]{1,255}', re.ASCII)
_PRINTABLE: Final = re.compile(r"[ -~]{1,255}", re.ASCII)
_OF_OPENAI: Final = re.compile(rb"[A-Za-z]*OpenAI[A-Za-z]*/")
_DIGITS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


def one(request: Request, name: bytes) -> str | None:
    """The value of a header (its name in lower case), or None. Raises InvalidRequest if it was sent twice."""
    found: bytes | None = None
    for key, value in request.scope["headers"]:
        if key == name:
            if found is not None:
                raise refuse(FieldError(_shown(name), "must be sent once"))
            found = value
    return None if found is None else found.decode("latin-1").strip(" \t")


def is_of_an_sdk(scope: Scope) -> bool:
    """Whether a vendor's SDK sent the request: those made by Stainless, such as OpenAI's, say so."""
    return any(name == b"x-stainless-lang" for name, _ in scope["headers"])


def is_of_openais_sdk(scope: Scope) -> bool:
    """Whether OpenAI's SDK sent it: ``OpenAI/Python 2.1``, ``AsyncOpenAI/Python``, ``AzureOpenAI/JS``."""
    return is_of_an_sdk(scope) and any(
        name == b"user-agent" and _OF_OPENAI.match(value) is not None for name, value in scope["headers"]
    )


def several(request: Request, name: bytes) -> str:
    """The values of a list header, joined as RFC 9110 joins them."""
    return ", ".join([value.decode("latin-1") for key, value in request.scope["headers"] if key == name])


def idempotency_key(request: Request) -> str | None:
    """``Idempotency-Key``, in quotes (as the draft standard wants) or without, or None. Raises InvalidRequest."""
    text = one(request, b"idempotency-key")
    if text is None:
        return None
    if _PLAIN.fullmatch(text):  # nothing to unescape, in quotes or not
        return text.strip('"')
    quoted = _QUOTED.fullmatch(text)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text
    if not _PRINTABLE.fullmatch(key) or (key.startswith('"') and not quoted):
        raise refuse(
            FieldError("Idempotency-Key", "must be 1 to 255 printable ASCII characters, with or without quotes")
        )
    return key


def preferred_wait_s(request: Request) -> int | None:
    """The ``wait`` of ``Prefer`` in seconds, at most MOST_WAIT_S. An invalid one is ignored, as in RFC 7240: None."""
    for preference in several(request, b"prefer").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            digits = value.strip().strip('"')
            return min(int(digits), MOST_WAIT_S) if _DIGITS.fullmatch(digits) else None
    return None


def wants_event_stream(request: Request) -> bool:
    """Whether ``Accept`` asks for events rather than for JSON. Raises NotAcceptable if it takes neither.

    If both are equally preferred, JSON wins. A wildcard is no preference: ``text/event-stream, */*`` asks for events.
    """
    accept = several(request, b"accept")
    if accept in ("", "*/*", JSON):
        return False
    stream, json = _liking(accept, EVENT_STREAM), _liking(accept, JSON)
    if stream[0] <= 0 and json[0] <= 0:
        raise NotAcceptable(f"Accept must allow {JSON} or {EVENT_STREAM}.")
    return stream > json


def must_accept(request: Request, media_type: str) -> None:
    """Raises NotAcceptable if ``Accept`` excludes the only type that there is."""
    accept = several(request, b"accept")
    if accept and _liking(accept, media_type)[0] <= 0:
        raise NotAcceptable(f"Accept must allow {media_type}.")


def _liking(accept: str, media_type: str) -> tuple[float, int]:
    """q of the most exact range in ``Accept`` that covers the type, and how exact that is: from 0 (none) to 3."""
    best = (0, 0.0)
    for media_range in accept.split(","):
        name, *parameters = [part.strip().lower() for part in media_range.split(";")]
        exactness = {media_type: 3, media_type.partition("/")[0] + "/*": 2, "*/*": 1}.get(name, 0)
        if exactness > best[0]:
            best = (exactness, _q(parameters))
    exactness, q = best
    return q, exactness


def _q(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return float(value) if re.fullmatch(r"[01](\.[0-9]{0,3})?", value.strip()) else 1.0
    return 1.0


def _shown(name: bytes) -> str:
    return "-".join(part.capitalize() for part in name.decode().split("-"))
