"""Makes a request's script: a status, timed steps of bytes, and what happens to the connection after them.

Pure functions; `connection` plays the script. Steps are made as they are played, so that a long answer needs no more
memory than a short one.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from email.utils import formatdate
from enum import Enum, auto
from itertools import chain

from simulator.answer import Answer, answer_to
from simulator.dialect import Dialect, Speech
from simulator.pace import DEFAULT, Pace
from simulator.record import Ended
from simulator.request import Refused, Request
from simulator.wire import LAST_CHUNK, Headers, Json, Step, chunk, head, json_bytes, whole_response
from simulator.words import HEAD, ODD, STOP, Fault, Words

HOLD_S = 3_600
"""After this time a stalled or pinging call is aborted, even if its client stays."""

GATEWAY_PAGE = b"<html>\r\n<head><title>Gateway</title></head>\r\n<body>A simulated proxy's page.</body>\r\n</html>\r\n"

SLOW_HEAD_PIECES = 10

NOT_ONLY_STREAMED = frozenset(("slow-head", "bad-json", "garbage", "big-line", *ODD))
"""The oddities that a response which is not a stream can have too."""

EMPTY_FRAME = b"data:\n\n"


class Then(Enum):
    """What happens to the connection after the last step."""

    KEEP = auto()
    CLOSE = auto()
    RESET = auto()
    HOLD = auto()
    """Nothing, until the client closes it."""


@dataclass(frozen=True, slots=True)
class Script:
    steps: Iterator[Step]
    status: int | None
    """None: no response head is sent."""
    then: Then = Then.KEEP
    ended: Ended = "completed"
    """How the call ends, if the script is played to its end."""
    faults: tuple[str, ...] = ()
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Occasion:
    """What a script depends on apart from the request."""

    key: str
    """The nonce, or without one a digest of the prompt. Calls are counted by it."""
    call_number: int
    """Counts the calls with this key, from 1."""
    request_id: str
    name: str
    """Part of every id in the answer."""
    now_s: float
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the prompt's words mean for this call."""

    dialect: Dialect
    pace: Pace
    request_id: str
    headers: Headers
    ending: Fault | None
    oddities: dict[str, Fault]
    """By name."""

    @property
    def faults(self) -> tuple[str, ...]:
        return (*self.oddities, *([self.ending.name] if self.ending else []))

    @property
    def odd(self) -> frozenset[str]:
        """The oddities that words.ODD names."""
        return frozenset(ODD.keys() & self.oddities.keys())

    @property
    def ended(self) -> Ended:
        return "fault" if self.ending else "completed"


def json_script(dialect: Dialect, status: int, body: Json, request_id: str, *, ended: Ended = "completed") -> Script:
    response = whole_response(status, [*_JSON, (dialect.request_id_header, request_id)], json_bytes(body))
    return Script(iter([Step(0, response)]), status, ended=ended)


def refusal_script(dialect: Dialect, refused: Refused, request_id: str) -> Script:
    """The error for an invalid request."""
    return json_script(dialect, refused.status, dialect.refusal(refused, request_id), request_id, ended="refused")


def answer_script(dialect: Dialect, request: Request, words: Words, pace: Pace, occasion: Occasion) -> Script:
    """The response to a request, with the faults that its prompt asks for."""
    plan = _plan(dialect, words, pace, occasion, streamed=request.stream)
    if plan.ending is not None and plan.ending.name == "fail":
        return _failure(plan.ending, plan, occasion.now_s)
    if plan.ending is not None and plan.ending.value == HEAD:
        return _silence(plan.ending, plan)
    if "texts-only" in plan.odd and request.has_parts:
        refused = Refused("Failed to parse messages: the content of a message must be a string")
        return replace(refusal_script(dialect, refused, occasion.request_id), faults=plan.faults)
    answer = answer_to(
        request,
        words,
        tokens=plan.pace.tokens,
        call_number=occasion.call_number,
        name=occasion.name,
        created_s=int(occasion.now_s),
        big_line=plan.oddities.get("big-line"),
    )
    speech = dialect.speech(request, answer, plan.odd)
    is_streamed = request.stream and "whole" not in plan.odd
    return _stream(answer, speech, plan) if is_streamed else _whole(answer, speech, plan)


def count_script(dialect: Dialect, request: Request, words: Words, occasion: Occasion) -> Script:
    """The response to a count_tokens request, with the faults that need no tokens."""
    plan = _plan(dialect, words, DEFAULT, occasion, streamed=False)
    if plan.ending is not None and plan.ending.name == "fail":
        return _failure(plan.ending, plan, occasion.now_s)
    if plan.ending is not None and plan.ending.value == HEAD:
        return _silence(plan.ending, plan)
    body = json_bytes({"input_tokens": request.input_tokens})
    return Script(_dribble(_response(200, [*_JSON, *plan.headers], body, plan), plan), 200)


def _plan(dialect: Dialect, words: Words, pace: Pace, occasion: Occasion, *, streamed: bool) -> Plan:
    def is_meant(fault: Fault) -> bool:
        return fault.is_meant_for(occasion.key, occasion.call_number)

    ending = next(filter(is_meant, words.endings), None)
    return Plan(
        dialect=dialect,
        pace=words.pace(pace),
        request_id=occasion.request_id,
        headers=[(dialect.request_id_header, occasion.request_id), *words.headers],
        ending=None if ending is not None and ending.name == "ok" else ending,
        oddities={
            fault.name: fault
            for fault in filter(is_meant, words.oddities)
            if streamed or fault.name in NOT_ONLY_STREAMED
        },
    )


_JSON: Headers = [("content-type", "application/json")]


# No answer


def _failure(fault: Fault, plan: Plan, now_s: float) -> Script:
    status = int(fault.value)
    headers = [*plan.headers, *_extra_headers(fault, now_s)]
    content_type, body = _failure_body(fault, plan)
    response = _response(status, [*content_type, *headers], body, plan)
    return Script(_dribble(response, plan), status, ended="fault", faults=plan.faults)


def _failure_body(fault: Fault, plan: Plan) -> tuple[Headers, bytes]:
    message = fault.options.get("message", "simulated failure")
    body = fault.options.get("body")
    match body:
        case "html":
            return [("content-type", "text/html")], GATEWAY_PAGE
        case "text":
            return [("content-type", "text/plain")], message.encode()
        case "empty":
            return [], b""
        case "details":
            detail = {"type": "value_error", "loc": ["body", "messages"], "msg": message, "input": None}
            return _JSON, json_bytes({"detail": [detail]})
        case None:
            error_type, code = fault.options.get("type"), fault.options.get("code")
            return _JSON, json_bytes(plan.dialect.failure(int(fault.value), error_type, code, message, plan.request_id))
        case _:
            return _JSON, json_bytes({body: message})


def _response(status: int, headers: Headers, body: bytes, plan: Plan) -> bytes:
    """A whole response, in the encoding that the oddities ask for."""
    compressor = _compressor(plan)
    if compressor is not None:
        body = compressor.compress(body) + compressor.flush()
    return whole_response(status, [*headers, *_encoding(plan)], body)


def _extra_headers(fault: Fault, now_s: float) -> Iterator[tuple[str, str]]:
    if 300 <= fault.value < 400:
        yield "location", fault.options.get("location", "/login")
    retry_after = fault.options.get("retry-after")
    if retry_after is not None:
        if retry_after.startswith("date+") and retry_after[5:].isdecimal():
            retry_after = formatdate(now_s + int(retry_after[5:]), usegmt=True)
        yield "retry-after", retry_after
    for option, header in (("retry-after-ms", "retry-after-ms"), ("should-retry", "x-should-retry")):
        if option in fault.options:
            yield header, fault.options[option]


def _silence(ending: Fault, plan: Plan) -> Script:
    then = {"stall": Then.HOLD, "rst": Then.RESET}.get(ending.name, Then.CLOSE)
    return Script(iter([Step(plan.pace.first_ms, b"")]), None, then, ended="fault", faults=plan.faults)


def _dribble(response: bytes, plan: Plan) -> Iterator[Step]:
    """The response (or only its head) at once, or in pieces over the time that `slow-head` gives."""
    slow_head = plan.oddities.get("slow-head")
    if slow_head is None:
        yield Step(0, response)
        return
    end_of_head = response.index(b"\r\n\r\n")
    piece_bytes = end_of_head // SLOW_HEAD_PIECES
    for piece in range(SLOW_HEAD_PIECES):
        yield Step(slow_head.value / SLOW_HEAD_PIECES, response[piece * piece_bytes : (piece + 1) * piece_bytes])
    yield Step(0, response[SLOW_HEAD_PIECES * piece_bytes :])


# The answer in one piece


def _whole(answer: Answer, speech: Speech, plan: Plan) -> Script:
    """Faults happen when the answer is due, whatever their place: there are no tokens to count before that."""
    body = json_bytes(speech.whole())
    if "bad-json" in plan.oddities:
        body = body[:-1]
    if "garbage" in plan.oddities:
        body = b"\x00\xff" + body
    response = _response(200, [*_JSON, *plan.headers], body, plan)
    status: int | None = 200
    then = Then.KEEP
    tokens = answer.output_tokens
    if plan.ending is not None:
        tokens = 0
        match plan.ending.name:
            case "error":
                status, envelope = _error(plan.ending, plan)
                response = _response(status, [*_JSON, *plan.headers], json_bytes(envelope), plan)
            case "rst":
                response, status, then = b"", None, Then.RESET
            case "stall" | "pings":
                response, status, then = b"", None, Then.HOLD
            case _:
                response, then = response[: -(len(body) // 2)], Then.CLOSE
    due = Step(plan.pace.whole_answer_ms(answer.output_tokens), b"", tokens)
    return Script(
        chain([due], _dribble(response, plan) if response else ()),
        status,
        then,
        ended=plan.ended,
        faults=plan.faults,
        output_tokens=answer.output_tokens,
    )


# The answer as a stream


def _stream(answer: Answer, speech: Speech, plan: Plan) -> Script:
    then = {"fin": Then.CLOSE, "bad-chunk": Then.CLOSE, "rst": Then.RESET, "stall": Then.HOLD, "pings": Then.HOLD}
    return Script(
        _stream_steps(answer, speech, plan),
        200,
        then.get(plan.ending.name, Then.KEEP) if plan.ending else Then.KEEP,
        ended=plan.ended,
        faults=plan.faults,
        output_tokens=answer.output_tokens,
    )


def _stream_steps(answer: Answer, speech: Speech, plan: Plan) -> Iterator[Step]:
    yield from _dribble(head(200, [*_STREAM, *_encoding(plan), *plan.headers]), plan)
    body = _Body(plan)
    if plan.oddities.keys() & _OF_THE_BYTES:
        for step in _frames(answer, speech, plan, bytes):
            yield from body.odd_chunks(step)
    else:
        yield from _frames(answer, speech, plan, chunk)
    yield from _last_bytes(answer, speech, plan, body)


_OF_THE_BYTES = frozenset(
    ("crlf", "slice", "split-utf8", "empty-frames", "gzip", "deflate", "message", "text-in-start")
)
"""The oddities that need more than one chunk for each event."""


_STREAM: Headers = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("transfer-encoding", "chunked"),
]


def _frames(answer: Answer, speech: Speech, plan: Plan, pack: Callable[[bytes], bytes]) -> Iterator[Step]:
    """The stream's events, each passed through `pack`, up to the place where the stream is cut."""
    total = answer.output_tokens
    last_place = _place_of(plan.ending, answer)
    pause_place = _place_of(plan.oddities.get("pause"), answer)
    inserted = _inserted_frames(answer, speech, plan)
    frame_of = speech.token
    sent = 0
    if "no-start" not in plan.oddities:
        yield Step(0, pack(speech.start()))
    for index, block in enumerate(answer.blocks):
        for data in speech.block_start(index):
            yield Step(0, pack(data))
        for token in block.tokens:
            if sent in inserted:
                yield Step(0, pack(inserted[sent]))
            if sent == pause_place:
                yield from _pause(plan, pack)
            if sent == last_place:
                return
            yield Step(plan.pace.before_token_ms(sent), pack(frame_of(block.kind, index, token)), 1)
            sent += 1
        if sent == total:
            if total in inserted:
                yield Step(0, pack(inserted.pop(total)))
            if pause_place == total:
                yield from _pause(plan, pack)
                pause_place = None
            if total == last_place:
                return
        for data in speech.block_end(index):
            yield Step(0, pack(data))
    if "no-stop-reason" not in plan.oddities:
        yield Step(0, pack(speech.stop_reason()))
    if STOP in inserted:
        yield Step(0, pack(inserted[STOP]))
    if pause_place == STOP:
        yield from _pause(plan, pack)
    if last_place != STOP:
        for data in speech.end():
            yield Step(0, pack(data))


def _pause(plan: Plan, pack: Callable[[bytes], bytes]) -> Iterator[Step]:
    options = plan.oddities["pause"].options
    left_ms, every_ms = int(options.get("ms", 0)), max(1, int(options.get("every-ms", 1_000)))
    while left_ms > 0:
        yield Step(min(left_ms, every_ms), pack(plan.dialect.ping))
        left_ms -= every_ms


def _place_of(fault: Fault | None, answer: Answer) -> int | None:
    """After how many tokens the fault happens; None: never."""
    if fault is None:
        return None
    place = int(fault.value)
    return place if place == STOP else min(place, answer.output_tokens)


def _inserted_frames(answer: Answer, speech: Speech, plan: Plan) -> dict[int, bytes]:
    """The unexpected frames, by place."""
    frames: dict[int, bytes] = {}
    for name, fault in plan.oddities.items():
        data = speech.restart() if name == "restart" else speech.stray(name)
        if data is not None:
            place = STOP if fault.value == STOP else min(int(fault.value), answer.output_tokens)
            frames[place] = frames.get(place, b"") + data
    return frames


class _Body:
    """A stream's bytes, with the line ends, the encoding and the pieces that the oddities ask for."""

    def __init__(self, plan: Plan) -> None:
        self._oddities = plan.oddities
        self._compressor = _compressor(plan)

    def odd_chunks(self, step: Step) -> Iterator[Step]:
        """The chunks of one event."""
        pieces = self._pieces(step.data)
        yield Step(step.after_ms, chunk(pieces[0]) if pieces else b"", step.tokens, alone=len(pieces) > 1)
        for piece in pieces[1:]:
            yield Step(0, chunk(piece), alone=True)

    def chunk(self, data: bytes) -> bytes:
        """One chunk."""
        return chunk(self._encoded(data))

    def end(self) -> bytes:
        return (chunk(self._compressor.flush()) if self._compressor else b"") + LAST_CHUNK

    def _pieces(self, event: bytes) -> list[bytes]:
        if not event:
            return []  # an empty chunk would end the body
        data = EMPTY_FRAME + event if "empty-frames" in self._oddities else event
        data = self._encoded(data.replace(b"\n", b"\r\n") if "crlf" in self._oddities else data)
        if "slice" in self._oddities:
            piece_bytes = int(self._oddities["slice"].value)
            return [data[start : start + piece_bytes] for start in range(0, len(data), piece_bytes)]
        if "split-utf8" in self._oddities and not event.isascii() and self._compressor is None:
            inside = 1 + next(index for index, byte in enumerate(data) if byte >= 0x80)
            return [data[:inside], data[inside:]]
        return [data]

    def _encoded(self, data: bytes) -> bytes:
        """Flushed, so that the client can decode all that was written so far."""
        if self._compressor is None:
            return data
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)


def _compressor(plan: Plan) -> "zlib._Compress | None":
    if "gzip" in plan.odd:
        return zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    return zlib.compressobj() if "deflate" in plan.odd else None


def _encoding(plan: Plan) -> Headers:
    if "gzip" in plan.odd:
        return [("content-encoding", "gzip")]
    return [("content-encoding", "deflate")] if "deflate" in plan.odd else []


def _last_bytes(answer: Answer, speech: Speech, plan: Plan, body: _Body) -> Iterator[Step]:
    """The bytes after the last event. A cut happens when the next token would have been due."""
    if plan.ending is None:
        yield Step(0, body.end())
        return
    place = _place_of(plan.ending, answer)
    after_ms = plan.pace.before_token_ms(place) if place is not None and place != STOP else 0
    match plan.ending.name:
        case "end":
            yield Step(after_ms, body.end())
        case "error":
            _, envelope = _error(plan.ending, plan)
            yield Step(after_ms, body.chunk(plan.dialect.error_frame(envelope)) + body.end())
        case "fin":
            promised = speech.token("text", 0, "cut ")
            yield Step(after_ms, b"%x\r\n" % len(promised) + promised[: len(promised) // 2])
        case "bad-chunk":
            yield Step(after_ms, b"this is no chunk size\r\n")
        case "rst":
            yield Step(after_ms, b"")
        case "pings":
            every_ms = int(plan.ending.options.get("every-ms", 1_000))
            for _ in range(HOLD_S * 1_000 // max(1, every_ms)):
                yield Step(every_ms, body.chunk(plan.dialect.ping))


def _error(fault: Fault, plan: Plan) -> tuple[int, Json]:
    """The status and envelope of an error that replaces the answer or the rest of it."""
    error_type = fault.options.get("type")
    status = plan.dialect.status_of(error_type)
    message = fault.options.get("message", "simulated error")
    return status, plan.dialect.failure(status, error_type, fault.options.get("code"), message, plan.request_id)
