"""Any request is answered or refused: the simulator itself does not fail, and records what it plays."""

import json
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.connection import HttpRequest
from simulator.record import Record
from simulator.routes import Routes
from simulator.words import ODD, ROWS

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner)
    ),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]) | ANY_JSON, "content": st.text() | ANY_JSON}
)
BODY = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["sim-t3-g0-f0", "sim-x", "other"]) | ANY_JSON,
        "max_tokens": st.integers(-1, 5) | ANY_JSON,
        "messages": st.lists(MESSAGE, max_size=3) | ANY_JSON,
        "stream": st.booleans() | ANY_JSON,
    },
    optional={"system": ANY_JSON, "tools": ANY_JSON, "temperature": ANY_JSON, "unknown": ANY_JSON},
)
FUNCTION = (
    st.fixed_dictionaries({}, optional={"name": st.text() | ANY_JSON, "arguments": st.text() | ANY_JSON}) | ANY_JSON
)
TOOL = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "custom"]) | ANY_JSON},
    optional={"id": st.sampled_from("ab") | ANY_JSON, "function": FUNCTION, "custom": FUNCTION},
)
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "refusal"]) | ANY_JSON},
    optional={"text": st.text() | ANY_JSON, "image_url": st.just({"url": "data:"}) | ANY_JSON},
)
CHAT_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | ANY_JSON},
    optional={
        "content": st.text() | st.lists(PART, max_size=2) | ANY_JSON,
        "tool_calls": st.lists(TOOL, max_size=2) | ANY_JSON,
        "tool_call_id": st.sampled_from("ab") | ANY_JSON,
    },
)
CHAT_BODY = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["sim-t3-g0-f0", "sim-x", "other"]) | ANY_JSON,
        "messages": st.lists(CHAT_MESSAGE, max_size=3) | ANY_JSON,
    },
    optional={
        "max_tokens": st.integers(-1, 5) | ANY_JSON,
        "max_completion_tokens": st.integers(-1, 5) | ANY_JSON,
        "stream": st.booleans() | ANY_JSON,
        "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | ANY_JSON}) | ANY_JSON,
        "tools": st.lists(TOOL, max_size=2) | ANY_JSON,
        "unknown": ANY_JSON,
    },
)
WORD = st.builds(
    "{}={}{}".format,
    st.sampled_from([row.name for row in ROWS]),
    st.sampled_from(["1", "529", "3x2", "stop", "head", "a7", "emoji", "thinking+text+tool", "x:%0a"])
    | st.text(max_size=5),
    st.sampled_from(["", ",retry-after=date+5", ",type=a", ",bytes=100", ",every-ms=0", ",percent=50"]),
)
SHAPES = st.lists(st.sampled_from(list(ODD)), min_size=1, max_size=5).map("+".join).map("odd={}".format)
PROMPT = st.lists(WORD | SHAPES | st.text(max_size=8), max_size=6).map(" ".join)


MESSAGES, CHAT = "/v1/messages", "/v1/chat/completions"


@settings(max_examples=150, deadline=None)
@given(BODY)
def test_any_body_is_answered(body: object) -> None:
    _answer(MESSAGES, json.dumps(body).encode())


@settings(max_examples=150, deadline=None)
@given(CHAT_BODY)
def test_any_body_is_answered_in_chat_completions(body: object) -> None:
    _answer(CHAT, json.dumps(body).encode())


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([MESSAGES, CHAT]), st.binary())
def test_any_bytes_are_answered(path: str, body: bytes) -> None:
    _answer(path, body)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([MESSAGES, CHAT]), PROMPT, st.booleans(), st.integers(1, 100))
def test_any_prompt_is_answered(path: str, prompt: str, stream: bool, max_tokens: int) -> None:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": "sim-t9", "max_tokens": max_tokens, "stream": stream, "messages": messages}
    _answer(path, json.dumps(body).encode())


def _answer(path: str, body: bytes) -> None:
    headers = {"authorization": "Bearer k", "anthropic-version": "2026-10-21"}
    response = Routes(Record()).respond(HttpRequest("POST", path, headers=headers, body=body))
    script = response.script
    sent = b"".join(step.data for step in islice(script.steps, 2_000))
    if script.status is None:
        assert sent == b""
    else:
        assert sent.startswith(b"HTTP/1.1 %d " % script.status)
    if script.ended == "refused":
        assert script.status in (400, 404)
