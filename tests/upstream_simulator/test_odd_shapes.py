"""The shapes that `odd=` names, as bytes: what a client of the simulator must handle."""

import gzip
import json
import zlib
from dataclasses import dataclass
from typing import Any

import pytest

from simulator.connection import HttpRequest
from simulator.record import Record
from simulator.routes import Routes

Json = dict[str, Any]

PATHS = {"messages": "/v1/messages", "chat": "/v1/chat/completions"}
TEXT = "n.1.0 n.1.1 n.1.2 "


@dataclass
class Played:
    status: int
    headers: dict[str, str]
    chunks: list[bytes]
    """The HTTP chunks of the body; a body with a length is one chunk."""
    faults: tuple[str, ...]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def frames(self) -> list[Json]:
        """The data of each frame that is JSON."""
        lines = [line.removeprefix(b"data: ") for line in self.body.splitlines() if line.startswith(b"data: ")]
        return [json.loads(line) for line in lines if line != b"[DONE]"]

    def of_type(self, name: str) -> list[Json]:
        return [event for event in self.frames if event["type"] == name]

    @property
    def deltas(self) -> list[Json]:
        return [choice["delta"] for chunk in self.frames for choice in chunk["choices"]]


def play(dialect: str, words: str, *, stream: bool = True, content: object = None) -> Played:
    body: Json = {
        "model": "sim-t3-g0-f0",
        "max_tokens": 100,
        "stream": stream,
        "messages": [{"role": "user", "content": content or f"nonce=n {words}"}],
    }
    if stream and dialect == "chat":
        body["stream_options"] = {"include_usage": True}
    headers = {"authorization": "Bearer k", "anthropic-version": "2023-06-01"}
    request = HttpRequest("POST", PATHS[dialect], headers=headers, body=json.dumps(body).encode())
    script = Routes(Record()).respond(request).script
    top, _, rest = b"".join(step.data for step in script.steps).partition(b"\r\n\r\n")
    lines = [line.partition(": ") for line in top.decode().split("\r\n")[1:]]
    assert script.status is not None
    fields = {name: value for name, _, value in lines}
    chunks = _dechunked(rest) if "transfer-encoding" in fields else [rest]
    return Played(script.status, fields, chunks, script.faults)


def _dechunked(data: bytes) -> list[bytes]:
    chunks = []
    while data:
        size, _, data = data.partition(b"\r\n")
        chunks.append(data[: int(size, 16)])
        data = data[int(size, 16) + 2 :]
    assert chunks.pop() == b"", "the body has no end"
    assert b"" not in chunks, "an empty chunk ends the body"
    return chunks


def text_of(played: Played) -> str:
    """The text that a Messages client reads."""
    return "".join(event["delta"]["text"] or "" for event in played.of_type("content_block_delta"))


def chat_text_of(played: Played) -> str:
    return "".join(delta.get("content") or "" for delta in played.deltas)


# Both dialects


@pytest.mark.parametrize("dialect", PATHS)
def test_a_whole_answer_comes_although_a_stream_was_asked_for(dialect: str) -> None:
    played = play(dialect, "odd=whole")
    assert played.headers["content-type"] == "application/json"
    assert TEXT in json.dumps(json.loads(played.body))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("dialect", PATHS)
def test_a_body_is_compressed_unasked(dialect: str, encoding: str, stream: bool) -> None:
    played = play(dialect, f"odd={encoding}", stream=stream)
    assert played.headers["content-encoding"] == encoding
    plain = gzip.decompress(played.body) if encoding == "gzip" else zlib.decompress(played.body)
    assert b"n.1.2 " in plain


@pytest.mark.parametrize(
    ("words", "last"),
    [
        ("slice=7", b'{"type":"message_stop"}\n\n'),
        ("crlf=1", b'{"type":"message_stop"}\r\n\r\n'),
        ("error=3", b'"message":"simulated error"},"request_id":"req_simulated_00000001"}\n\n'),
        ("fail=529", b'"message":"simulated failure"},"request_id":"req_simulated_00000001"}'),
    ],
)
def test_compression_goes_together_with_other_words(words: str, last: bytes) -> None:
    played = play("messages", f"odd=gzip {words}")
    assert gzip.decompress(played.body).endswith(last)
    assert (max(map(len, played.chunks[:-1]), default=8) <= 7) == (words == "slice=7")  # the last one ends the encoding


def test_each_event_can_be_read_before_the_next_is_compressed() -> None:
    played = play("messages", "odd=gzip")
    decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    assert b"message_start" in decompressor.decompress(played.chunks[0])


@pytest.mark.parametrize("dialect", PATHS)
def test_an_empty_frame_stands_before_each(dialect: str) -> None:
    played = play(dialect, "odd=empty-frames")
    assert all(chunk.startswith(b"data:\n\n") for chunk in played.chunks)
    assert b"n.1.2 " in played.body


@pytest.mark.parametrize(("odd", "kind"), [("text-numbers", str), ("float-numbers", float)])
@pytest.mark.parametrize("dialect", PATHS)
def test_numbers_have_another_type_but_not_in_a_tools_input(dialect: str, odd: str, kind: type) -> None:
    frames = play(dialect, f"odd={odd} blocks=tool").frames
    places = ["index"] if dialect == "messages" else ["created"]
    numbers = [frame[place] for frame in frames for place in places if place in frame]
    usages = [frame["usage"] for frame in frames if frame.get("usage")]
    numbers += [number for usage in usages for number in usage.values() if not isinstance(number, dict)]
    assert {type(number) for number in numbers} == {kind}
    whole = json.loads(play("messages", f"odd={odd} blocks=tool", stream=False).body)
    assert whole["content"][0]["input"] == {"simulated": True, "nonce": "n", "call": 1}
    assert isinstance(whole["usage"]["output_tokens"], kind)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", PATHS)
def test_members_that_nobody_needs_are_odd(dialect: str, stream: bool) -> None:
    body = play(dialect, "odd=wrong-members", stream=stream).body
    assert b'"odd":{"unknown":[null]}' in body or b'"odd":[1]' in body
    assert b"n.1.0" in body


def test_pings_come_for_a_while_and_then_the_rest() -> None:
    body = play("messages", "blocks=tool pause=2,ms=2500").body
    before, _, after = body.rpartition(b"event: ping")
    assert before.count(b"event: ping") == 3  # the answer's own first one, and two of the three
    assert before.count(b"input_json_delta") == 2
    assert b"message_stop" in after
    assert play("chat", "pause=stop,ms=2,every-ms=1").body.count(b": ping") == 2


@pytest.mark.parametrize(
    ("odd", "start", "delta", "stop"),
    [
        ("usage-start", True, False, False),
        ("usage-stop", False, True, False),
        ("usage-end", False, False, True),
        ("usage-never", False, False, False),
    ],
)
def test_the_usage_comes_in_one_event(odd: str, start: bool, delta: bool, stop: bool) -> None:
    played = play("messages", f"odd={odd}")
    (first,), (last,), (end,) = map(played.of_type, ("message_start", "message_delta", "message_stop"))
    usages = [first["message"].get("usage"), last.get("usage"), end.get("usage")]
    assert [usage is not None for usage in usages] == [start, delta, stop]
    assert [usage["output_tokens"] for usage in usages if usage] == [3] * (start + delta + stop)


@pytest.mark.parametrize(
    ("odd", "where"), [("usage-start", [0]), ("usage-stop", [4]), ("usage-end", [5]), ("usage-never", [])]
)
def test_the_usage_comes_in_one_chunk(odd: str, where: list[int]) -> None:
    chunks = play("chat", f"odd={odd}").frames
    assert [index for index, chunk in enumerate(chunks) if chunk.get("usage")] == where
    assert all(chunk["choices"] for chunk in chunks)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")] == [3] * len(where)


def test_the_usage_so_far_comes_with_each_token() -> None:
    deltas = play("messages", "odd=usage-every").of_type("message_delta")
    assert [delta["usage"]["output_tokens"] for delta in deltas] == [1, 2, 3, 3]
    assert [delta["delta"]["stop_reason"] for delta in deltas] == [None, None, None, "end_turn"]
    chunks = play("chat", "odd=usage-every").frames
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("detail", {"detail": "no such"}),
        (
            "details",
            {"detail": [{"type": "value_error", "loc": ["body", "messages"], "msg": "no such", "input": None}]},
        ),
        ("error", {"error": "no such"}),
        ("message", {"message": "no such"}),
    ],
)
@pytest.mark.parametrize("dialect", PATHS)
def test_a_refusal_has_another_shape(dialect: str, body: str, shown: Json) -> None:
    played = play(dialect, f"fail=400,message=no%20such,body={body}")
    assert (played.status, json.loads(played.body)) == (400, shown)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_says_where(status: int) -> None:
    assert play("chat", f"fail={status}").headers["location"] == "/login"
    played = play("messages", f"fail={status},location=https://llm.example/v1%20x,body=empty")
    assert (played.status, played.headers["location"], played.body) == (status, "https://llm.example/v1 x", b"")


def test_an_error_can_have_status_200() -> None:
    played = play("messages", "fail=200,type=overloaded_error")
    assert (played.status, json.loads(played.body)["error"]["type"]) == (200, "overloaded_error")


# Messages


def test_done_comes_in_one_write_with_message_stop() -> None:
    assert play("messages", "odd=done").chunks[-1].endswith(b'{"type":"message_stop"}\n\ndata: [DONE]\n\n')


def test_deltas_without_a_text_come_between() -> None:
    events = play("messages", "odd=nulls blocks=thinking+text+tool").of_type("content_block_delta")
    texts = [
        event["delta"].get("text", event["delta"].get("thinking", event["delta"].get("partial_json")))
        for event in events
        if event["delta"]["type"] != "signature_delta"
    ]
    assert texts[::2] == [None] * (len(texts) // 2)
    assert all(isinstance(text, str) for text in texts[1::2])


def test_message_start_has_no_content() -> None:
    (start,) = play("messages", "odd=no-content").of_type("message_start")
    assert "content" not in start["message"]


def test_the_numbers_of_blocks_have_gaps() -> None:
    events = play("messages", "odd=index-gaps blocks=thinking+text").frames
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == [1, 3]
    assert {event["index"] for event in events if "index" in event} == {1, 3}


def test_the_first_token_stands_in_the_blocks_start() -> None:
    played = play("messages", "odd=text-in-start")
    (start,) = played.of_type("content_block_start")
    assert start["content_block"]["text"] + text_of(played) == TEXT
    assert len(played.of_type("content_block_delta")) == 2


# Chat completions


def test_the_answer_is_a_message_in_one_chunk() -> None:
    first, usage = play("chat", "odd=message").frames
    (choice,) = first["choices"]
    assert (choice["delta"], choice["message"]["content"], choice["finish_reason"]) == (None, TEXT, "stop")
    assert usage["usage"]["completion_tokens"] == 3


def test_a_content_is_a_list_of_parts() -> None:
    deltas = play("chat", "odd=parts blocks=thinking+text").deltas
    parts = [part for delta in deltas for part in delta.get("content") or ()]
    assert [part["type"] for part in parts] == ["thinking"] * 7 + ["text"] * 3
    assert parts[0]["thinking"] == [{"type": "text", "text": "This "}]
    assert "".join(part["text"] for part in parts[7:]) == TEXT


def test_a_chunk_without_a_text_comes_between() -> None:
    played = play("chat", "odd=nulls blocks=text+tool")
    assert {"content": None} in played.deltas
    assert {"tool_calls": [{"index": 0, "function": {"arguments": None}}]} in played.deltas
    assert chat_text_of(played) == TEXT


@pytest.mark.parametrize(
    ("odd", "ids", "indices"),
    [
        ("no-ids", [None, None], [0, 1]),
        ("empty-ids", ["", ""], [0, 1]),
        ("no-ids+one-index", [None, None], [0, 0]),
        ("empty-ids+index-gaps", ["", ""], [1, 3]),
    ],
)
def test_parallel_calls_are_hard_to_tell_apart(odd: str, ids: list[str | None], indices: list[int]) -> None:
    calls = [
        call for delta in play("chat", f"odd={odd} blocks=tool+tool").deltas for call in delta.get("tool_calls", ())
    ]
    begun = [call for call in calls if "name" in call["function"]]
    assert [call.get("id") for call in begun] == ids
    assert [call["index"] for call in begun] == indices
    assert [call["function"]["name"] for call in begun] == ["simulated_tool"] * 2


@pytest.mark.parametrize(("content", "status"), [(None, 200), ([{"type": "text", "text": "odd=texts-only"}], 400)])
def test_a_server_takes_only_texts(content: object, status: int) -> None:
    played = play("chat", "odd=texts-only", content=content)
    assert (played.status, played.faults) == (status, ("texts-only",))
