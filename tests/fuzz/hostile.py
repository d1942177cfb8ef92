"""Hostile bodies, headers and queries, with a canary in everything that could be content."""

import json
import time
from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import strategies as st
from starlette.types import ASGIApp

from api.state.api_state import ApiState

CANARY: Final = "c4n4ry z9"
"""With a space: no name contains one, so a message that names a field cannot contain the canary."""
_JOB: Final = "job_01m84bdq4t7w9k2p5x8r3n6v0c"
_BATCH: Final = "batch_01m84bdq4t7w9k2p5x8r3n6v0c"
ROUTES: Final = (
    "/v1/jobs",
    f"/v1/jobs/{_JOB}/follow-token",
    f"/v1/jobs/{_JOB}/cancel",
    f"/v1/jobs/{_JOB}/retry",
    "/v1/batches",
    f"/v1/batches/{_BATCH}/cancel",
    f"/v1/batches/{_BATCH}/retry",
    "/complete",
    "/complete/stream",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/messages/batches",
    f"/v1/messages/batches/ms{_BATCH.replace('batch', 'gbatch')}/cancel",
    "/v1/keys",
    "/v1/keys/absent/rotate",
    "/v1/keys/absent/revoke",
)

_NAMES: Final = [
    "prompt",
    "messages",
    "model",
    "max_tokens",
    "stream",
    "job",
    "role",
    "content",
    "priority",
    "timeout_s",
    "expires_in_s",
    "max_attempts",
    "not_before",
    "metadata",
    "requests",
    "custom_id",
    "params",
    "name",
    "scopes",
    "tenant",
    "expires_at",
    "system",
    "tools",
]
_names = st.sampled_from([*_NAMES, CANARY, f"{CANARY}\x00", f"{CANARY}\n"]) | st.text(max_size=5)
_texts = st.text(max_size=8).map(lambda text: CANARY + text)
_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | _texts
    | st.sampled_from(
        ["user", "high", "2026-11-23T14:02:11Z", "9999-12-31T23:59:59-23:59", 1e308, 10**19, -(2**63), ""]
    )
)
_values = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=4), max_leaves=10
)
_nearly = st.fixed_dictionaries(
    {},
    optional={
        "prompt": _texts | _values,
        "messages": st.lists(st.fixed_dictionaries({"role": _leaves, "content": _values}), max_size=3) | _values,
        "max_tokens": st.integers(-5, 5000) | _leaves,
        "job": st.dictionaries(_names, _leaves, max_size=3) | _leaves,
        "requests": st.lists(st.fixed_dictionaries({"custom_id": _leaves, "params": _values}), max_size=3),
        "name": _leaves,
        "scopes": _values,
    },
)
_json = (_nearly | st.dictionaries(_names, _values, max_size=6)).map(lambda body: json.dumps(body).encode())
_damaged = st.builds(
    lambda body, place, junk: body[: place % (len(body) + 1)] + junk + body[place % (len(body) + 1) :],
    _json,
    st.integers(0, 200),
    st.binary(max_size=3),
)
bodies = st.one_of(_json, _json, _damaged, st.binary(max_size=60))
content_types = st.sampled_from(
    [b"application/json"] * 6 + [b"application/jsonl"] * 2 + [b"text/plain", b"", f"text/{CANARY}".encode()]
)
headers = st.lists(
    st.sampled_from(
        [
            (name, value)
            for name in (b"idempotency-key", b"last-event-id", b"x-request-id", b"prefer", b"accept", b"x-tenant")
            for value in (CANARY.encode(), CANARY.encode() + b"\xff", b"x" * 3000, b"", b'"' + CANARY.encode())
        ]
        + [(b"content-encoding", b"gzip"), (b"anthropic-beta", CANARY.encode()), (b"x-on-disconnect", CANARY.encode())]
        + [(b"expect", CANARY.encode()), (b"authorization", b"Bearer " + CANARY.encode()), (b"origin", CANARY.encode())]
    ),
    max_size=2,
)
queries = st.sampled_from(
    [b""] * 6
    + [b"c4n4ry%20z9=1", b"priority=c4n4ry%20z9", b"metadata.c4n4ry%20z9=c4n4ry%20z9", b"%ff=%zz", b"x=%00", b"&&==&"]
)


@dataclass
class Answer:
    """An application's response."""

    status: int = 0
    """0: there was no response, since the client had disconnected."""
    body: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    took_ms: float = 0.0


async def answer_of(
    app: ASGIApp, state: ApiState, path: str, body: bytes, given: list[tuple[bytes, bytes]], query: bytes = b""
) -> Answer:
    """One POST, directly to the application; the client disconnects after the body, so nothing waits for a job."""
    answer = Answer()
    messages: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], message["headers"]
        else:
            answer.body += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"api"), (b"content-length", b"%d" % len(body)), *given],
        "client": ("192.0.2.1", 1),
        "server": ("api", 80),
        "state": {"api": state},
    }
    begun_s = time.perf_counter()
    await app(scope, receive, send)
    answer.took_ms = (time.perf_counter() - begun_s) * 1000
    return answer


def echoed(answer: Answer) -> bool:
    """Whether the response quotes the request, apart from members of the caller's own job that the API promises."""
    for name, value in answer.headers:
        if CANARY.encode() in value and name != b"location":
            return True
    if answer.status < 300 and answer.body.startswith(b"{"):
        content = json.loads(answer.body)
        for promised in ("metadata", "model", "name"):
            content.pop(promised, None)
        return CANARY in json.dumps(content, ensure_ascii=False)
    return CANARY.encode() in answer.body


def large_bodies() -> dict[str, bytes]:
    """Bodies near the size limit that cause the most work."""
    size = 31 << 20
    return {
        "a long text": b'{"prompt":"' + b"a" * size + b'"}',
        "a text of escapes": b'{"prompt":"' + b"\\u00e9" * (size // 6) + b'"}',
        "a text with colons": b'{"prompt":"' + b"a: b, " * (size // 6) + b'"}',
        "a number of 31 million digits": b'{"max_tokens":' + b"1" * size + b"}",
        "ten million lists": b'{"x":[' + b"[]," * (size // 3) + b"[]]}",
        "ten million objects": b'{"messages":[' + b"{}," * (size // 3) + b"{}]}",
        "two million members": b"{" + b",".join(b'"%d":1' % number for number in range(2_000_000)) + b"}",
        "five million times the same member": b"{" + b'"a":1,' * (size // 6) + b'"a":1}',
        "16 million lists, one in the other": b"[" * (size // 2),
        "spaces": b" " * size,
        "messages that are none": b'{"messages":[' + b"1," * 99_000 + b"1]}",
        "99,000 members": b"{" + b",".join(b'"%d":1' % number for number in range(99_000)) + b"}",
    }
