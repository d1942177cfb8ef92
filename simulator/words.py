"""The words `name=value` in a prompt, by which a test asks the simulator for answers and faults.

ROWS is the whole grammar, as data; `python -m simulator --grammar` prints it. An invalid value is ordinary prose
(`print(x, end="")` is not a fault), unless it begins with a digit: then it was meant for the simulator, which refuses
the call.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import unquote

from simulator.pace import MAX_TOKENS, Pace

HEAD = -1
"""The place before the response head."""
STOP = 1_000_000_000
"""The place after all tokens and the stop reason, and before the end: between `message_delta` and `message_stop`, or
between the chunk with the `finish_reason` and the usage (if the client asked for it) and `[DONE]`."""

SCANNED_CHARACTERS = 100_000
"""Only this part of a prompt is searched for words."""


class Kind(Enum):
    PACE = "how long and how fast; beats the model's name"
    ANSWER = "what the answer is"
    ENDING = "how the call ends: the first one that applies to this call is played"
    ODDITY = "what is odd on the way: all that apply to this call are played"


_WHOLE = r"\d{1,6}"
_DECIMAL = r"\d{1,7}(?:\.\d{1,3})?"
_PLACE = r"\d{1,6}|stop"
_PLACE_OR_HEAD = r"\d{1,6}|stop|head"

ODD: Mapping[str, str] = {
    "whole": "the whole answer as application/json, although a stream was asked for",
    "gzip": "the body is gzip, although identity was asked for",
    "deflate": "the same with deflate",
    "empty-frames": "an empty `data:` frame before each frame",
    "done": "Messages: `data: [DONE]` in one write with message_stop",
    "nulls": "before each token a delta whose text, thinking, partial_json or arguments is null",
    "wrong-members": "unneeded members are unknown, or have another type",
    "text-numbers": "numbers are strings",
    "float-numbers": "numbers are decimals",
    "index-gaps": "content blocks, or tool calls, are numbered 1, 3, 5",
    "usage-start": "the usage comes with the first frame, and not again",
    "usage-every": "each token comes with the usage so far",
    "usage-stop": "the usage comes with the stop reason, and nowhere else",
    "usage-end": "the usage comes after the stop reason, in message_stop or in a chunk that has a choice",
    "usage-never": "there is no usage",
    "no-content": "Messages: message_start has no content",
    "text-in-start": "Messages: the first token of a text is in its content_block_start",
    "message": "chat: one chunk with the whole answer as `message`, its `delta` null",
    "parts": "chat: a delta's content is a list of parts, thinking among them",
    "no-ids": "chat: tool calls have no id",
    "empty-ids": "chat: tool calls have an empty id",
    "one-index": "chat: every tool call has the index 0",
    "texts-only": "chat: the server refuses contents that are lists",
}
"""What `odd=` may name: shapes in which other servers send their answers. Each is an oddity of its own."""

SAMPLES: Mapping[str, tuple[str, ...]] = {
    "lines": ("One line.\n", "Two lines.\r\n", "\n", "A bare\r", "carriage return.\n\n", "\u2028", "\u0085", "End.\n"),
    "emoji": ("Grüße ", "an ", "👩‍🚀 ", "世界, ", "cafe\u0301 ", "🇪🇺 ", "und ", "𝄞."),
    "done": ("[DONE]", "\n", "[DONE]", "\n\n", "data: [DONE]\n\n", "[DONE]"),
    "sse": (
        "data: x\n\n",
        "event: error\n",
        'data: {"type":"error","error":{"type":"api_error","message":"not an error"}}\n\n',
        "id: 1-1\r\n\r\n",
        "retry: 0\r\r",
        ": comment\n\n",
        "\n\nevent: message_stop\n",
        'data: {"type":"message_stop"}\n\n',
    ),
    "html": ("<script>alert(1)</script> ", "<img src=x onerror=alert(1)> ", "</pre> ", "&amp; ", "[x](javascript:1)"),
    "control": ("nul \x00 ", "bell \x07 ", "escape \x1b[31m ", "delete \x7f ", "mark \ufeff ", "override \u202e."),
    "surrogate": ("half ", "a ", "\ud83d", " pair."),
}

BLOCKS = ("text", "thinking", "tool", "citations")
STOP_REASONS = (
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "pause_turn",
    "refusal",
    "model_context_window_exceeded",
)


BODIES = ("html", "text", "empty", "detail", "details", "error", "message")
"""The bodies that a failure may have instead of the API's error envelope."""


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    kind: Kind
    value: str
    """A regular expression; for a fault it does not cover `xN` and the options."""
    example: str
    meaning: str
    options: tuple[str, ...] = ()
    """The options of a fault; every fault has `percent` too."""


ROWS: tuple[Row, ...] = (
    Row("tokens", Kind.PACE, _WHOLE, "tokens=50", "the answer has 50 tokens"),
    Row("gap-ms", Kind.PACE, _DECIMAL, "gap-ms=20", "20 ms between tokens"),
    Row("first-ms", Kind.PACE, _DECIMAL, "first-ms=50", "the first token after 50 ms"),
    Row(
        "nonce",
        Kind.ANSWER,
        r"[A-Za-z0-9_.:-]{1,64}",
        "nonce=a7",
        "token i of this nonce's call c is `a7.c.i `; calls count from 1, tokens from 0",
    ),
    Row("text", Kind.ANSWER, "|".join(SAMPLES), "text=emoji", f"a text that breaks things: {', '.join(SAMPLES)}"),
    Row(
        "blocks",
        Kind.ANSWER,
        rf"(?:{'|'.join(BLOCKS)})(?:\+(?:{'|'.join(BLOCKS)})){{0,31}}",
        "blocks=thinking+text+tool",
        f"the content blocks in this order: {', '.join(BLOCKS)}; in chat completions, thinking is reasoning_content and "
        "citations are plain text",
    ),
    Row(
        "stop",
        Kind.ANSWER,
        "|".join(STOP_REASONS),
        "stop=refusal",
        "this stop_reason, or the finish_reason nearest to it",
    ),
    Row("cached", Kind.ANSWER, _WHOLE, "cached=30", "30 more tokens of input, which were read from the prompt cache"),
    Row("cache-write", Kind.ANSWER, _WHOLE, "cache-write=20", "20 more tokens of input, which were written to it"),
    Row(
        "header",
        Kind.ANSWER,
        r"[A-Za-z0-9-]{1,64}:\S+",
        "header=anthropic-ratelimit-requests-remaining:0",
        "a response header of your own, percent-encoded where needed; may stand several times",
    ),
    Row("ok", Kind.ENDING, "1", "ok=1x2", "no ending fault (here: the first two calls are spared what follows)"),
    Row(
        "fail",
        Kind.ENDING,
        r"200|30[12378]|[45]\d\d",
        "fail=529x2,retry-after=3",
        "this status instead of an answer, also 200 and the redirects (to location). retry-after is any "
        "percent-encoded text, or date+N for the date in N s; type, and for chat completions code, are the error's; "
        "body is another one than the error envelope: html, text, empty, or JSON with the message as detail, details "
        "(FastAPI's list), error, message",
        ("retry-after", "retry-after-ms", "should-retry", "type", "code", "message", "body", "location"),
    ),
    Row(
        "end",
        Kind.ENDING,
        _PLACE_OR_HEAD,
        "end=3",
        "a clean end of the body after 3 tokens, without message_stop or [DONE]",
    ),
    Row("fin", Kind.ENDING, _PLACE_OR_HEAD, "fin=3", "the connection closed in the middle of a chunk after 3 tokens"),
    Row("rst", Kind.ENDING, _PLACE_OR_HEAD, "rst=head", "the connection reset, here before the response head"),
    Row("stall", Kind.ENDING, _PLACE_OR_HEAD, "stall=3", "silence after 3 tokens, until the client goes"),
    Row(
        "pings", Kind.ENDING, _PLACE, "pings=3,every-ms=100", "only pings after 3 tokens, every 1000 ms", ("every-ms",)
    ),
    Row(
        "error",
        Kind.ENDING,
        _PLACE,
        "error=3,type=overloaded_error",
        "an error event after 3 tokens, then a clean end; api_error or server_error if no type is given",
        ("type", "code", "message"),
    ),
    Row("bad-chunk", Kind.ENDING, _PLACE, "bad-chunk=3", "bytes that are not HTTP after 3 tokens, then a close"),
    Row(
        "odd",
        Kind.ODDITY,
        rf"(?:{'|'.join(ODD)})(?:\+(?:{'|'.join(ODD)})){{0,31}}",
        "odd=no-ids+one-index",
        "these shapes, one or several:",
    ),
    Row(
        "pause",
        Kind.ODDITY,
        _PLACE,
        "pause=3,ms=70000",
        "only pings for 70 s after 3 tokens, every 1000 ms; then the answer goes on",
        ("ms", "every-ms"),
    ),
    Row("slow-head", Kind.ODDITY, _DECIMAL, "slow-head=500", "the response head comes in pieces over 500 ms"),
    Row("slice", Kind.ODDITY, r"[1-9]\d{0,5}", "slice=7", "the stream comes in chunks (HTTP and TCP) of 7 bytes"),
    Row("split-utf8", Kind.ODDITY, "1", "split-utf8=1", "each frame with a character beyond ASCII is split inside it"),
    Row("crlf", Kind.ODDITY, "1", "crlf=1", "the stream's lines end in CRLF"),
    Row("no-start", Kind.ODDITY, "1", "no-start=1", "message_start, or the chunk with the role, is left out"),
    Row(
        "no-stop-reason",
        Kind.ODDITY,
        "1",
        "no-stop-reason=1",
        "message_delta, or the chunk with the finish_reason, is left out; message_stop or [DONE] comes",
    ),
    Row(
        "restart",
        Kind.ODDITY,
        _PLACE,
        "restart=3",
        "a second message_start, or chunk with the role and another id, after 3 tokens",
    ),
    Row("bad-json", Kind.ODDITY, _PLACE, "bad-json=3", "an event whose data is not JSON after 3 tokens"),
    Row("garbage", Kind.ODDITY, _PLACE, "garbage=3", "a frame that is not UTF-8 after 3 tokens"),
    Row(
        "no-index",
        Kind.ODDITY,
        _PLACE,
        "no-index=3",
        "a content_block_delta, choice or tool call without its index after 3 tokens",
    ),
    Row(
        "unknown-event", Kind.ODDITY, _PLACE, "unknown-event=3", "an event of no known type, SSE comment, id and retry"
    ),
    Row("unknown-delta", Kind.ODDITY, _PLACE, "unknown-delta=3", "a delta of no known type"),
    Row("big-line", Kind.ODDITY, _WHOLE, "big-line=3,bytes=1000", "one token of 10 MB, or of `bytes`", ("bytes",)),
)

_ROWS = {row.name: row for row in ROWS}
_VALUES = {row.name: re.compile(row.value) for row in ROWS}
_FAULTS = {
    row.name: re.compile(rf"(?P<value>{row.value})(?:x(?P<calls>\d{{1,6}}))?(?P<options>(?:,[a-z-]+=[^,]*)*)")
    for row in ROWS
    if row.kind in (Kind.ENDING, Kind.ODDITY)
}
_WORD = re.compile(rf"(?<!\S)(?:(?P<name>{'|'.join(map(re.escape, _ROWS))})=(?P<value>\S+)|(?P<echo>echo:)(?:\s|$))")


class WordError(Exception):
    """A word meant for the simulator is invalid; the message quotes it."""


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    value: float
    """A status, a duration in ms, a size in bytes, 1 for yes, or a place: a number of tokens, HEAD or STOP."""
    calls: int | None = None
    """Applies only to this many first calls with the nonce (or, without a nonce, the prompt); None: to all."""
    percent: int = 100
    """Share of those calls, chosen by the nonce and the call's number: always the same ones."""
    options: Mapping[str, str] = field(default_factory=dict)

    def is_meant_for(self, key: str, call_number: int) -> bool:
        if self.calls is not None and call_number > self.calls:
            return False
        return self.percent >= 100 or zlib.crc32(f"{self.name} {key} {call_number}".encode()) % 100 < self.percent


@dataclass(frozen=True, slots=True)
class Words:
    tokens: int | None = None
    gap_ms: float | None = None
    first_ms: float | None = None
    nonce: str | None = None
    sample: str | None = None
    """A key of SAMPLES."""
    echo: str | None = None
    """The text after `echo:`, which is the answer word for word."""
    blocks: tuple[str, ...] = ("text",)
    stop_reason: str | None = None
    cached_tokens: int = 0
    """Input tokens read from the prompt cache, on top of the request's own."""
    cache_write_tokens: int = 0
    """Input tokens written to the prompt cache, on top of both."""
    headers: tuple[tuple[str, str], ...] = ()
    endings: tuple[Fault, ...] = ()
    oddities: tuple[Fault, ...] = ()

    def pace(self, of_model: Pace) -> Pace:
        return Pace(
            tokens=of_model.tokens if self.tokens is None else self.tokens,
            gap_ms=of_model.gap_ms if self.gap_ms is None else self.gap_ms,
            first_ms=of_model.first_ms if self.first_ms is None else self.first_ms,
        )


def parse_words(*texts: str) -> Words:
    """The words in the texts: a later word replaces an earlier one; faults add up. Raises WordError."""
    plain: dict[str, str] = {}
    headers: list[tuple[str, str]] = []
    faults: dict[Kind, list[Fault]] = {Kind.ENDING: [], Kind.ODDITY: []}
    echo: str | None = None
    for text in texts:
        if "=" not in text and "echo:" not in text:
            continue
        for word in _WORD.finditer(text, 0, SCANNED_CHARACTERS):
            if word["echo"]:
                echo = text[word.end("echo") + 1 :]
                break
            row, value = _ROWS[word["name"]], word["value"]
            if row.kind in faults:
                faults[row.kind].extend(_parse_faults(row, value))
            elif not _VALUES[row.name].fullmatch(value):
                _refuse_if_meant(row, value)
            elif row.name == "header":
                headers.append(_parse_header(value))
            else:
                plain[row.name] = value
    return Words(
        tokens=min(MAX_TOKENS, int(plain["tokens"])) if "tokens" in plain else None,
        gap_ms=float(plain["gap-ms"]) if "gap-ms" in plain else None,
        first_ms=float(plain["first-ms"]) if "first-ms" in plain else None,
        nonce=plain.get("nonce"),
        sample=plain.get("text"),
        echo=echo,
        blocks=tuple(plain["blocks"].split("+")) if "blocks" in plain else ("text",),
        stop_reason=plain.get("stop"),
        cached_tokens=int(plain.get("cached", 0)),
        cache_write_tokens=int(plain.get("cache-write", 0)),
        headers=tuple(headers),
        endings=tuple(faults[Kind.ENDING]),
        oddities=tuple(faults[Kind.ODDITY]),
    )


def grammar() -> str:
    """ROWS as text for people."""
    lines = ["Words in a prompt (the text of its last user message) that the simulator acts on.", ""]
    for kind in Kind:
        lines.append(f"{kind.name.lower()}: {kind.value}")
        for row in ROWS:
            if row.kind is kind:
                lines.append(f"  {row.example:<{_EXAMPLE_WIDTH}}  {row.meaning}")
                if row.name == "odd":
                    lines.extend(f"    odd={name:<{_EXAMPLE_WIDTH - 6}}  {meaning}" for name, meaning in ODD.items())
        if kind is Kind.ANSWER:
            lines.append(f"  {'echo: any text':<{_EXAMPLE_WIDTH}}  the rest of the prompt is the answer")
        lines.append("")
    lines.append(
        "Faults: x2 after the value means the first two calls with the nonce or prompt; ,percent=50 means half"
    )
    lines.append(
        "of the calls. A place is a number of tokens, `head` (no response head is sent) or `stop` (the stop reason"
    )
    lines.append("is sent, but neither message_stop nor the usage and [DONE]).")
    lines.append("Model names: sim-t50-g20-f50 is 50 tokens, 20 ms apart, the first after 50 ms.")
    return "\n".join(lines)


_EXAMPLE_WIDTH = max(len(row.example) for row in ROWS)


def _parse_faults(row: Row, value: str) -> list[Fault]:
    """The fault, or each oddity that `odd=` names; empty if the value is prose."""
    parsed = _FAULTS[row.name].fullmatch(value)
    if parsed is None:
        _refuse_if_meant(row, value)
        return []
    calls = None if parsed["calls"] is None else int(parsed["calls"])
    options = _parse_options(row, value, parsed["options"])
    percent = int(options.pop("percent", "100"))
    if row.name == "odd":
        return [Fault(name, 1, calls, percent) for name in parsed["value"].split("+")]
    number = {"head": float(HEAD), "stop": float(STOP)}.get(parsed["value"])
    return [Fault(row.name, float(parsed["value"]) if number is None else number, calls, percent, options)]


def _parse_options(row: Row, value: str, text: str) -> dict[str, str]:
    options = {}
    for option in text.split(",")[1:]:
        name, _, encoded = option.partition("=")
        options[name] = unquote(encoded)
    known = ("percent", *row.options)
    if any(name not in known or not _is_printable(text) for name, text in options.items()):
        raise WordError(f"simulator: {row.name}={value!r} has an option that does not fit (known: {', '.join(known)})")
    for name in _NUMBERS & options.keys():
        if not options[name].isdecimal():
            raise WordError(f"simulator: {row.name}={value!r} needs a number in its option")
    if options.get("body", BODIES[0]) not in BODIES:
        raise WordError(f"simulator: {row.name}={value!r} has an unknown body (known: {', '.join(BODIES)})")
    return options


_NUMBERS = {"percent", "every-ms", "ms", "bytes"}


def _parse_header(value: str) -> tuple[str, str]:
    name, _, encoded = value.partition(":")
    text = unquote(encoded)
    if not _is_printable(text):
        raise WordError(f"simulator: header={value!r} is not printable ASCII")
    return name, text


def _is_printable(text: str) -> bool:
    # Options and headers go into the response head, where a line end would let the prompt inject a header.
    return text.isascii() and (text.isprintable() or not text)


def _refuse_if_meant(row: Row, value: str) -> None:
    if value[0].isdigit():
        raise WordError(f"simulator: {row.name}={value!r} does not fit; an example: {row.example}")
