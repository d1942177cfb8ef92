"""Splits a batch's body into its requests as it arrives: bytes in pieces go in, the raw JSON of each request comes out.

Pure, with bounded memory: it keeps at most one unfinished request, and of that no more than a request may have. Every
byte is read once, however the body is cut into pieces. It does not look inside a request.

In the code, a *mark* is a bracket, a comma or a colon outside of texts.
"""

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol

from api.http.invalid import BODY, is_name, refuse
from api.http.strict_json import decode
from shared.errors import FieldError, InvalidRequest, TooLarge

REQUESTS: Final = "requests"
JOB: Final = "job"

_MOST_MEMBER_BYTES: Final = 64 << 10
_SPACE: Final = b" \t\r\n"
_BREAK: Final = 0x0A
_RETURN: Final = 0x0D


class Line(NamedTuple):
    """One request of the body."""

    number: int
    """From 1: the line in the body, or the position in the list."""
    raw: bytes | None
    """None if it is longer than a request may be: its bytes were not kept."""


class Splitter(Protocol):
    """``feed`` takes the body's next piece, ``end`` its end. Both yield the requests that are complete.

    Both raise TooLarge and InvalidRequest, which refuse the whole body. Exhaust the iterator before the next call.
    """

    def feed(self, piece: bytes) -> Iterator[Line]:
        """The next piece of the body."""

    def end(self) -> Iterator[Line]:
        """The end of the body."""

    @property
    def job(self) -> bytes | None:
        """The raw ``job`` member; None until it has come."""


class _Kept:
    """The bytes of what is not complete yet, unless they are more than may be kept."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._most_bytes:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    @property
    def is_empty(self) -> bool:
        return not self._size

    def take(self) -> bytes | None:
        """All bytes, or None if they were too many. Empties it."""
        whole = None if self._size > self._most_bytes else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return whole


_UTF_8_MARK: Final = b"\xef\xbb\xbf"
_UTF_16: Final = re.compile(rb"\xff\xfe|\xfe\xff|\0\0\xfe\xff|\{\0|\0{1,3}\{")
"""UTF-16 or UTF-32: the byte order mark, or without one the bracket that a request begins with."""
_MOST_MARK_BYTES: Final = 4


def _without_mark(head: bytes) -> bytes:
    """The beginning of a body, without the byte order mark of editors on Windows (RFC 8259, 8.1 lets us ignore it).

    Raises InvalidRequest for UTF-16 and UTF-32: otherwise each line would become a failed item.
    """
    if _UTF_16.match(head):
        raise refuse(FieldError(BODY, "must be UTF-8, and seems to be UTF-16: save or convert the file as UTF-8"))
    return head.removeprefix(_UTF_8_MARK)


class JsonLines:
    """One request per line. Blank lines are skipped, but count in the line numbers."""

    job = None

    def __init__(self, *, max_requests: int, max_line_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_line_bytes = max_line_bytes
        self._kept = _Kept(max_line_bytes + 1)  # and the \r that may end it
        self._number = 0
        self._requests = 0
        self._head: bytes | None = b""
        """The first bytes, until they show the encoding; then None."""

    def feed(self, piece: bytes) -> Iterator[Line]:
        if self._head is not None:
            self._head += piece
            if len(self._head) < _MOST_MARK_BYTES:
                return
            piece, self._head = _without_mark(self._head), None
        yield from self._split(piece)

    def _split(self, piece: bytes) -> Iterator[Line]:
        first, *rest = piece.split(b"\n")
        self._kept.add(first)
        if not rest:
            return
        begun = rest.pop()
        yield from self._counted(self._kept.take())
        for raw in rest:
            yield from self._counted(raw)
        self._kept.add(begun)

    def end(self) -> Iterator[Line]:
        if self._head is not None:
            yield from self._split(_without_mark(self._head))
        last = self._kept.take()
        if last != b"":
            yield from self._counted(last)
        if not self._requests:
            raise refuse(FieldError(BODY, "must have at least one line that is not blank"))

    def _counted(self, raw: bytes | None) -> Iterator[Line]:
        self._number += 1
        if raw is not None:
            if raw.endswith(b"\r"):
                raw = raw[:-1]
            if len(raw) > self._max_line_bytes:
                raw = None
            elif not raw.strip(_SPACE):
                if self._number - self._requests > self._max_requests:
                    raise TooLarge(f"A batch must have at most {self._max_requests} blank lines.")
                return
        self._requests += 1
        if self._requests > self._max_requests:
            raise _too_many(self._max_requests)
        yield Line(self._number, raw)


class _At(Enum):
    """The part of the envelope that the next byte belongs to."""

    BEGIN = auto()
    NAME = auto()
    MEMBER = auto()
    LIST = auto()
    REQUEST = auto()
    AFTER_LIST = auto()
    AFTER = auto()


# No repetition can match the byte that follows it, so a match that fails does not backtrack quadratically. Possessive
# quantifiers would be clearer, but match wrongly before Python 3.11.5 (python/cpython#106052; seen on 3.11.2).
_TEXT: Final = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_INSIDE: Final = re.compile(rb'[^"\[\]{}]*(?:' + _TEXT + rb'[^"\[\]{}]*)*([\[\]{}])', re.DOTALL)
_OUTSIDE: Final = re.compile(rb'[^"\[\]{},:]*(?:' + _TEXT + rb'[^"\[\]{},:]*)*([\[\]{},:])', re.DOTALL)
_NO_MARK: Final = re.compile(rb'[^"]*(?:' + _TEXT + rb'[^"]*)*', re.DOTALL)
"""The rest of a piece, without marks. If it ends before the piece does, the piece cuts a text that begins there."""
_REST_OF_TEXT: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_BLANK: Final = re.compile(rb"[ \t\r\n]*")


def _whole_request(depth: int) -> re.Pattern[bytes]:
    """A whole object, no deeper than ``depth``, and the mark after it: ten times as fast as single steps."""
    inside = rb'[^"\[\]{}]*(?:' + _TEXT + rb'[^"\[\]{}]*)*'
    for _ in range(depth - 1):
        inside = rb'[^"\[\]{}]*(?:(?:' + _TEXT + rb"|[\[{]" + inside + rb'[\]}])[^"\[\]{}]*)*'
    return re.compile(rb"([ \t\r\n]*\{" + inside + rb"\}[ \t\r\n]*)[,\]]", re.DOTALL)


_WHOLE_REQUEST: Final = _whole_request(4)


class JsonRequests:
    """``{"requests": [...]}``, with the other members before or after it.

    A request ends where its brackets are closed and a comma or the list's bracket follows, whatever is inside. The
    envelope itself must be JSON to the byte.
    """

    def __init__(self, *, members: frozenset[str], max_requests: int, max_line_bytes: int) -> None:
        """``members``: the names that the envelope may have."""
        self.job: bytes | None = None
        self._members = members
        self._max_requests = max_requests
        self._max_line_bytes = max_line_bytes
        self._at = _At.BEGIN
        self._seen: set[str] = set()
        self._name = ""
        self._requests = 0
        self._read_bytes = 0
        self._kept = _Kept(_MOST_MEMBER_BYTES)
        self._depth = 0
        self._in_text = False
        self._is_escaped = False

    def feed(self, piece: bytes) -> Iterator[Line]:
        place = 0
        while place < len(piece):
            if self._is_before_request() and (found := _WHOLE_REQUEST.match(piece, place)):
                yield self._counted(found[1])
                place = found.end()
                if piece[place - 1] == _CLOSE_LIST:
                    self._list_ends()
                continue
            if self._at in (_At.NAME, _At.MEMBER, _At.REQUEST):
                end = self._mark(piece, place)
                if end < 0:
                    self._kept.add(piece[place:])
                    break
                self._kept.add(piece[place:end])
                place = end + 1
                if self._at is _At.REQUEST:
                    yield self._request(piece[end], end)
                elif self._at is _At.NAME:
                    self._member_begins(piece[end], end)
                else:
                    self._member_ends(piece[end], end)
            else:
                blank = _BLANK.match(piece, place)
                assert blank is not None
                place = blank.end()
                if place < len(piece):
                    yield from self._step(piece[place : place + 1], place)
                    place += 1
        self._read_bytes += len(piece)

    def end(self) -> Iterator[Line]:
        if self._at is not _At.AFTER:
            empty = self._at is _At.BEGIN
            raise refuse(
                FieldError(BODY, "must be a JSON object, but " + ("the body is empty" if empty else "breaks off"))
            )
        if REQUESTS not in self._seen:
            raise refuse(FieldError(f"#/{REQUESTS}", "is missing"))
        return iter(())

    def _is_before_request(self) -> bool:
        return self._at is _At.REQUEST and self._kept.is_empty and not self._depth and not self._in_text

    def _mark(self, piece: bytes, place: int) -> int:
        """The index in the piece, from ``place`` on, of the mark that ends the current part; -1 if it is not there."""
        if self._in_text:
            place = self._after_text(piece, place)
            if place < 0:
                return -1
        ends = _ENDS[self._at]
        while True:
            found = (_INSIDE if self._depth else _OUTSIDE).match(piece, place)
            if found is None:
                break
            place = found.end()
            mark = piece[place - 1]
            if mark in b"[{":
                self._depth += 1
            elif self._depth:
                self._depth -= mark in b"]}"
            elif mark in ends:
                return place - 1
            elif mark in b"]}":
                raise self._broken(place - 1)
        unmarked = _NO_MARK.match(piece, place)
        assert unmarked is not None
        if unmarked.end() < len(piece):
            self._in_text = True
            self._after_text(piece, unmarked.end() + 1)
        return -1

    def _after_text(self, piece: bytes, place: int) -> int:
        """The index after the text that is open at ``place``; -1 if the piece ends first."""
        if self._is_escaped and place < len(piece):
            self._is_escaped = False
            place += 1
        rest = _REST_OF_TEXT.match(piece, place)
        assert rest is not None
        place = rest.end()
        if place < len(piece) and piece[place] == _QUOTE:
            self._in_text = False
            return place + 1
        self._is_escaped = place < len(piece)  # at a backslash: what it escapes is in the next piece
        return -1

    def _step(self, mark: bytes, place: int) -> Iterator[Line]:
        """Takes one byte of the envelope that is in no name and no value."""
        match self._at, mark:
            case _At.BEGIN, b"{":
                self._at = _At.NAME
            case _At.LIST, b"[":
                self._at = _At.REQUEST
                self._kept = _Kept(self._max_line_bytes)
            case _At.AFTER_LIST, b",":
                self._at = _At.NAME
            case _At.AFTER_LIST, b"}":
                self._at = _At.AFTER
            case _At.LIST, _:
                raise refuse(FieldError(f"#/{REQUESTS}", "must be a list"))
            case _At.BEGIN, _:
                raise refuse(FieldError(BODY, "must be a JSON object"))
            case _:
                raise self._broken(place)
        return iter(())

    def _member_begins(self, mark: int, place: int) -> None:
        raw = self._kept.take()
        if mark == _CLOSE_OBJECT and raw is not None and not raw.strip(_SPACE) and not self._seen:
            self._at = _At.AFTER
            return
        if mark != _COLON or raw is None:
            raise self._broken(place)
        try:
            name = decode(raw)
        except InvalidRequest:
            name = None
        if not isinstance(name, str):
            raise self._broken(place)
        if name not in self._members:
            shown = f"#/{name}" if is_name(name) else BODY
            raise refuse(FieldError(shown, "is not known" if shown != BODY else "has a member that is not known"))
        if name in self._seen:
            raise refuse(FieldError(BODY, f"must not have a member twice ({name})"))
        self._seen.add(name)
        self._name = name
        self._at = _At.LIST if name == REQUESTS else _At.MEMBER

    def _member_ends(self, mark: int, place: int) -> None:
        raw = self._kept.take()
        if raw is None:
            raise refuse(FieldError(f"#/{self._name}", f"must have at most {_MOST_MEMBER_BYTES} bytes"))
        if not raw.strip(_SPACE):
            raise self._broken(place)
        self.job = raw
        self._at = _At.NAME if mark == _COMMA else _At.AFTER

    def _request(self, mark: int, place: int) -> Line:
        raw = self._kept.take()
        if mark == _CLOSE_LIST:
            self._list_ends()
        if raw is not None and not raw.strip(_SPACE):
            if mark == _CLOSE_LIST and not self._requests:
                raise refuse(FieldError(f"#/{REQUESTS}", "must have at least one request"))
            raise self._broken(place)
        return self._counted(raw)

    def _counted(self, raw: bytes | None) -> Line:
        self._requests += 1
        if self._requests > self._max_requests:
            raise _too_many(self._max_requests)
        return Line(self._requests, None if raw is None or len(raw) > self._max_line_bytes else raw)

    def _list_ends(self) -> None:
        self._at = _At.AFTER_LIST
        self._kept = _Kept(_MOST_MEMBER_BYTES)

    def _broken(self, place: int) -> InvalidRequest:
        return refuse(FieldError(BODY, f"must be JSON; it is not valid at byte {self._read_bytes + place}"))


_QUOTE, _COMMA, _COLON, _CLOSE_LIST, _CLOSE_OBJECT = b'",:]}'
_ENDS: Final = {_At.NAME: b":}", _At.MEMBER: b",}", _At.REQUEST: b",]"}


def _too_many(max_requests: int) -> TooLarge:
    return TooLarge(f"A batch must have at most {max_requests} requests.")
