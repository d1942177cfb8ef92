"""Compares what the worker made of a stream with what the oracle expects and with what followers saw."""

import contextlib
import re
from enum import StrEnum
from typing import Any, Final, NamedTuple

import jiter
import msgspec

from shared.events import OUR_NAMES
from tests.mutations.frame import Dialect, Doubt, Stream
from tests.mutations.oracle import Expected, Verdict
from tests.mutations.words import SECRETS
from tests.mutations.worker_under_test import Observed


class Kind(StrEnum):
    """The kinds of findings."""

    FAILED = "a certain answer was thrown away"
    LATE = "a whole answer was held back"
    SUCCEEDED = "a doubtful answer succeeded"
    NOT_AS_SENT = "silent difference: the result is not what was sent"
    NOT_AS_SEEN = "silent difference: the result is not what followers saw"
    USAGE = "the usage is not what was sent"
    UNNAMED = "the failure does not name what is odd"
    LEAKED = "the failure holds content"
    CIRCUIT = "a habit of the server's opens its circuit"
    CLASS = "the failure is of another kind than the upstream said"
    TOLD = "followers were told what no stream may hold"
    CALLS = "not one call"
    CRASHED = "no outcome"


SILENT: Final = frozenset({Kind.NOT_AS_SENT, Kind.NOT_AS_SEEN, Kind.SUCCEEDED})


class Finding(NamedTuple):
    """One thing that is wrong with an outcome."""

    kind: Kind
    detail: str


def findings_of(stream: Stream, expected: Expected, observed: Observed) -> list[Finding]:
    """Everything that is wrong with the observed outcome."""
    if observed.crash:
        return [Finding(Kind.CRASHED, observed.crash)]
    found = _oddly_shaped(observed)
    if observed.calls != 1:
        found.append(Finding(Kind.CALLS, f"{observed.calls} calls"))
    if observed.has_succeeded:
        return found + _of_success(stream, expected, observed)
    return found + _of_failure(stream, expected, observed)


def _of_success(stream: Stream, expected: Expected, observed: Observed) -> list[Finding]:
    assert observed.result is not None
    if expected.verdict is Verdict.DOUBTFUL:
        return [Finding(Kind.SUCCEEDED, f"with {_short(observed.result)}")]
    found = _not_as_seen(observed)
    is_chat = stream.dialect is Dialect.CHAT
    sent = _folded(expected.blocks) if is_chat else expected.blocks
    blocks = [_said(block) for block in observed.result["message"]["content"] if _says(block)]
    got = _folded(blocks) if is_chat else blocks
    if sent != got and "kinds" not in expected.loose:
        found.append(Finding(Kind.NOT_AS_SENT, f"sent {_short(sent)}, got {_short(got)}"))
    text = "".join(block["text"] for block in expected.blocks if block["type"] == "text")
    if observed.result["text"] != text and "kinds" not in expected.loose:
        found.append(Finding(Kind.NOT_AS_SENT, f"sent the text {text!r}, got {observed.result['text']!r}"))
    if observed.result["stop_reason"] != expected.stop_reason:
        found.append(
            Finding(Kind.NOT_AS_SENT, f"ended by {expected.stop_reason}, got {observed.result['stop_reason']}")
        )
    if expected.usage and observed.usage is not None:
        got_usage = {name: observed.usage.get(name, 0) for name in expected.usage}
        if got_usage != expected.usage:
            found.append(Finding(Kind.USAGE, f"sent {expected.usage}, got {got_usage}"))
    if expected.longest_s is not None and observed.waited_s > expected.longest_s:
        found.append(Finding(Kind.LATE, f"{observed.waited_s:.1f} s"))
    return found


def _of_failure(stream: Stream, expected: Expected, observed: Observed) -> list[Finding]:
    if expected.verdict is Verdict.CERTAIN:
        return [Finding(Kind.FAILED, observed.message)]
    found = []
    if not any(_names(observed.message, doubt) for doubt in expected.doubts):
        wanted = " or ".join(dict.fromkeys("/".join(doubt.members[:3]) for doubt in expected.doubts))
        found.append(Finding(Kind.UNNAMED, f"{observed.message!r} does not name {wanted}"))
    if leaked := [word for word in SECRETS if word in observed.message]:
        found.append(Finding(Kind.LEAKED, f"{leaked} in {observed.message!r}"))
    if observed.opens_circuit and all(doubt.is_habit for doubt in expected.doubts):
        found.append(Finding(Kind.CIRCUIT, observed.message))
    response = stream.response
    if response is not None and response.code and observed.code != response.code:
        found.append(Finding(Kind.CLASS, f"{response.code} became {observed.code}: {observed.message}"))
    if response is not None and response.is_final and observed.is_retryable:
        found.append(Finding(Kind.CLASS, f"it would be tried again: {observed.message}"))
    return found


def _names(message: str, doubt: Doubt) -> bool:
    """Whether the message names what is odd and how; the common beginning of such messages does not count."""
    detail = message.partition(":")[2] or message
    return _has(detail, doubt.members) and _has(detail, doubt.how)


def _has(message: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message, re.IGNORECASE) for word in words)


# --- what followers saw -----------------------------------------------------------------------------------------------

_COMPARED: Final = ("type", "text", "thinking", "name", "input", "id", "signature", "citations")


def _not_as_seen(observed: Observed) -> list[Finding]:
    assert observed.result is not None
    found = []
    text = observed.text_heard()
    if text != observed.result["text"]:
        found.append(
            Finding(Kind.NOT_AS_SEEN, f"format=text heard {text!r}, the result has {observed.result['text']!r}")
        )
    try:
        seen, stop_reason = _message_heard(observed.events)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [*found, Finding(Kind.NOT_AS_SEEN, f"a follower of format=messages fails: {error!r}")]
    seen = [_compared(block) for block in seen if _says(block)]
    got = [_compared(block) for block in observed.result["message"]["content"] if _says(block)]
    if seen != got:
        found.append(Finding(Kind.NOT_AS_SEEN, f"format=messages heard {_short(seen)}, the result has {_short(got)}"))
    if stop_reason != observed.result["stop_reason"]:
        found.append(Finding(Kind.NOT_AS_SEEN, f"heard the reason {stop_reason}, got {observed.result['stop_reason']}"))
    return found


def _compared(block: dict[str, Any]) -> dict[str, Any]:
    return {name: block[name] for name in _COMPARED if block.get(name) not in (None, "", [])}


def _message_heard(events: list[tuple[str, bytes]]) -> tuple[list[dict[str, Any]], str | None]:
    """Adds up a stream as the official SDKs do, except for odd numbers, at which they would fail."""
    blocks: dict[int, dict[str, Any]] = {}
    inputs: dict[int, str] = {}
    reason = None
    for name, data in events:
        event = msgspec.json.decode(data)
        match name:
            case "content_block_start":
                index = int(float(event.get("index") or 0))
                if index in blocks:
                    raise ValueError("two blocks of one index")
                blocks[index] = dict(event["content_block"])
            case "content_block_delta":
                index = int(float(event.get("index") or 0))
                delta = event.get("delta") or {}
                for member in ("text", "thinking"):
                    if isinstance(delta.get(member), str):
                        blocks[index][member] = (blocks[index].get(member) or "") + delta[member]
                if isinstance(delta.get("signature"), str):
                    blocks[index]["signature"] = delta["signature"]  # the SDKs keep the last one
                if isinstance(delta.get("partial_json"), str):
                    inputs[index] = inputs.get(index, "") + delta["partial_json"]
                if delta.get("type") == "citations_delta" and "citation" in delta:
                    blocks[index]["citations"] = [*(blocks[index].get("citations") or []), delta["citation"]]
            case "message_delta":
                reason = (event.get("delta") or {}).get("stop_reason") or reason
    for index, joined in inputs.items():
        if joined.strip():
            with contextlib.suppress(ValueError):
                blocks[index]["input"] = jiter.from_json(joined.encode(), partial_mode=True)
    return [blocks[index] for index in sorted(blocks)], reason


def _oddly_shaped(observed: Observed) -> list[Finding]:
    """Event names and data that would break a follower, whatever the job's outcome."""
    for name, data in observed.events:
        if name in OUR_NAMES:
            if observed.calls == 1:
                return [Finding(Kind.TOLD, f"an event of the upstream's is called {name}")]
            continue
        if b"\n" in data or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name, re.ASCII):
            return [Finding(Kind.TOLD, "a name or data that breaks its frame")]
        try:
            msgspec.json.decode(data)
        except ValueError:
            return [Finding(Kind.TOLD, f"{name} with data that is no JSON")]
    return []


# --- forms ------------------------------------------------------------------------------------------------------------


def _says(block: dict[str, Any]) -> bool:
    return block.get("type") not in ("text", "thinking") or bool(block.get(block["type"]))


def _said(block: dict[str, Any]) -> dict[str, Any]:
    match block.get("type"):
        case "text" | "thinking" as kind:
            return {"type": kind, kind: block[kind]}
        case "tool_use" | "server_tool_use" as kind:
            return {"type": kind, "name": block.get("name"), "input": block.get("input")}
        case kind:
            return {"type": kind}


def _folded(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat stream has no blocks: its text counts as one block, its thinking as one, and its calls are ordered."""
    said = {kind: "".join(block[kind] for block in blocks if block["type"] == kind) for kind in ("thinking", "text")}
    folded = [{"type": kind, kind: joined} for kind, joined in said.items() if joined]
    return folded + [block for block in blocks if block["type"] not in ("thinking", "text")]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 400 else f"{text[:400]}…"
