"""Routes each request to its script: the endpoints of both APIs, and the simulator's own under /_simulator.

The record gets a line for every call that would cost tokens at the real API, including refused ones.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote

from simulator.chat import CHAT
from simulator.chat_request import parse_chat_request
from simulator.connection import HttpRequest, Response
from simulator.dialect import Dialect
from simulator.messages import MESSAGES
from simulator.messages_request import parse_messages_request
from simulator.pace import NAMED, pace_of
from simulator.record import Call, Endpoint, Record, call_as_json
from simulator.request import Refused, Request
from simulator.script import Occasion, Script, answer_script, count_script, json_script, refusal_script
from simulator.wire import LAST_CHUNK, Headers, Json, Step, chunk, head, whole_response
from simulator.words import WordError, grammar, parse_words

CLAUDE_MODELS = ("claude-opus-4-6", "claude-sonnet-4-6", "claude-haiku-4-5")

LINES_PER_STEP = 1_000
"""Lines of the record written before other connections get a turn."""

_TEXT: Headers = [("content-type", "text/plain; charset=utf-8")]


class Routes:
    def __init__(self, record: Record) -> None:
        self.record = record
        self._words = ""
        self._requests = 0

    @property
    def words(self) -> str:
        """Words put before every prompt, and so faults for every client's calls."""
        return self._words

    @words.setter
    def words(self, words: str) -> None:
        """Raises WordError for invalid words."""
        parse_words(words)
        self._words = words

    def respond(self, request: HttpRequest) -> Response:
        self._requests += 1
        request_id = f"req_simulated_{self._requests:08d}"
        match request.method, request.path:
            case "POST", "/v1/messages":
                return self._call(MESSAGES, "messages", request, request_id)
            case "POST", "/v1/messages/count_tokens":
                return self._call(MESSAGES, "count_tokens", request, request_id)
            case "POST", "/v1/chat/completions":
                return self._call(CHAT, "chat_completions", request, request_id)
            case _, path if path.startswith("/_simulator"):
                return Response(self._own(request, request_id))
            case _:
                # Both APIs have /v1/models. Anthropic's SDK always sends this header, and OpenAI's never does.
                dialect: Dialect = MESSAGES if "anthropic-version" in request.headers else CHAT
                return Response(_free_of_charge(dialect, request, request_id))

    # The APIs' calls

    def _call(self, dialect: Dialect, endpoint: Endpoint, request: HttpRequest, request_id: str) -> Response:
        call = self.record.begin(
            endpoint,
            request.headers.get("x-stainless-retry-count"),
            request.headers.get("anthropic-beta"),
            request.headers.get("anthropic-version"),
        )
        try:
            dialect.check_key(request.headers)
            return Response(self._script(dialect, call, request, request_id), call)
        except WordError as error:
            return Response(refusal_script(dialect, Refused(str(error)), request_id), call)
        except Refused as refused:
            return Response(refusal_script(dialect, refused, request_id), call)

    def _script(self, dialect: Dialect, call: Call, request: HttpRequest, request_id: str) -> Script:
        asked = _parsed(call.endpoint, request)
        words = parse_words(self._words, asked.prompt)
        key = words.nonce or hashlib.blake2b(asked.prompt.encode(errors="replace"), digest_size=12).hexdigest()
        call.model, call.nonce, call.stream = asked.model, words.nonce, asked.stream
        # Counted over both APIs, so that a fallback from one to the other is the second call.
        call.nonce_call = self.record.next_call_of(f"{'count' if call.endpoint == 'count_tokens' else 'answer'} {key}")
        call.input_tokens = asked.input_tokens
        pace = pace_of(asked.model)
        if pace is None:
            raise dialect.unknown_model(asked.model)
        occasion = Occasion(key, call.nonce_call, request_id, f"simulated_{call.number:08d}", time.time())
        if call.endpoint == "count_tokens":
            return count_script(dialect, asked, words, occasion)
        return answer_script(dialect, asked, words, pace, occasion)

    # The simulator's own

    def _own(self, request: HttpRequest, request_id: str) -> Script:
        match request.method, request.path:
            case "GET", "/_simulator/calls":
                nonce = parse_qs(request.query).get("nonce")
                calls = self.record.of_nonce(nonce[0]) if nonce else list(self.record.calls)
                return Script(_call_lines(calls), 200)
            case "DELETE", "/_simulator/calls":
                return json_script(MESSAGES, 200, {"deleted": self.record.reset()}, request_id)
            case "GET", "/_simulator/counts":
                return json_script(MESSAGES, 200, self.record.counts(), request_id)
            case "GET", "/_simulator/words":
                return _text(self.words)
            case "PUT", "/_simulator/words":
                return self._set_words(request.body, request_id)
            case "GET", "/_simulator" | "/_simulator/":
                return _text(grammar())
            case _:
                return refusal_script(
                    MESSAGES, Refused("Not found; GET /_simulator is the grammar of words", 404), request_id
                )

    def _set_words(self, body: bytes, request_id: str) -> Script:
        try:
            self.words = body.decode()
        except (UnicodeDecodeError, WordError) as error:
            return refusal_script(MESSAGES, Refused(str(error)), request_id)
        return _text(self.words)


def _parsed(endpoint: Endpoint, request: HttpRequest) -> Request:
    """Raises Refused."""
    if endpoint == "chat_completions":
        return parse_chat_request(request.body)
    version = request.headers.get("anthropic-version", "")
    return parse_messages_request(request.body, version, counting=endpoint == "count_tokens")


def _free_of_charge(dialect: Dialect, request: HttpRequest, request_id: str) -> Script:
    """The response to a request that would cost no tokens."""
    try:
        dialect.check_key(request.headers)
        match request.method, request.path:
            case "GET", "/v1/models":
                return json_script(
                    dialect, 200, dialect.models((*CLAUDE_MODELS, *NAMED), parse_qs(request.query)), request_id
                )
            case "GET", path if path.startswith("/v1/models/"):
                return json_script(dialect, 200, _model(dialect, unquote(path.removeprefix("/v1/models/"))), request_id)
            case method, path:
                raise dialect.not_found(method, path)
    except Refused as refused:
        return refusal_script(dialect, refused, request_id)


def _model(dialect: Dialect, name: str) -> Json:
    if pace_of(name) is None or not name.startswith(("claude-", "sim")):
        raise dialect.unknown_model(name)
    return dialect.model(name)


def _text(text: str) -> Script:
    return Script(iter([Step(0, whole_response(200, _TEXT, text.encode()))]), 200)


def _call_lines(calls: list[Call]) -> Iterator[Step]:
    """The record as JSON lines, in pieces, so that a long record does not delay other calls."""
    yield Step(0, head(200, [("content-type", "application/jsonl"), ("transfer-encoding", "chunked")]))
    for start in range(0, len(calls), LINES_PER_STEP):
        lines = [f"{json.dumps(call_as_json(call))}\n" for call in calls[start : start + LINES_PER_STEP]]
        yield Step(0, chunk("".join(lines).encode()), alone=True)
    yield Step(0, LAST_CHUNK)
