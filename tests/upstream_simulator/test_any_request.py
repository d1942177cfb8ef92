"""Whatever a request holds, it is answered or refused: the simulator itself does not fail, and says what it plays."""

import json
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.connection import HttpRequest
from simulator.record import Record
from simulator.routes import Routes
from simulator.words import ROWS

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
    optional={"system": ANY_JSON, "tools": ANY_JSON, "unknown": ANY_JSON},
)
WORD = st.builds(
    "{}={}{}".format,
    st.sampled_from([row.name for row in ROWS]),
    st.sampled_from(["1", "529", "3x2", "stop", "head", "a7", "emoji", "thinking+text+tool", "x:%0a"])
    | st.text(max_size=5),
    st.sampled_from(["", ",retry-after=date+5", ",type=a", ",bytes=100", ",every-ms=0", ",percent=50"]),
)
PROMPT = st.lists(WORD | st.text(max_size=8), max_size=6).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(BODY)
def test_any_body_is_answered(body: object) -> None:
    _answer(json.dumps(body).encode())


@settings(max_examples=100, deadline=None)
@given(st.binary())
def test_any_bytes_are_answered(body: bytes) -> None:
    _answer(body)


@settings(max_examples=200, deadline=None)
@given(PROMPT, st.booleans(), st.integers(1, 100))
def test_any_prompt_is_answered(prompt: str, stream: bool, max_tokens: int) -> None:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": "sim-t9", "max_tokens": max_tokens, "stream": stream, "messages": messages}
    _answer(json.dumps(body).encode())


def _answer(body: bytes) -> None:
    response = Routes(Record()).respond(HttpRequest("POST", "/v1/messages", headers={"x-api-key": "k"}, body=body))
    script = response.script
    sent = b"".join(step.data for step in islice(script.steps, 2_000))
    if script.status is None:
        assert sent == b""
    else:
        assert sent.startswith(b"HTTP/1.1 %d " % script.status)
    if script.ended == "refused":
        assert script.status in (400, 404)
