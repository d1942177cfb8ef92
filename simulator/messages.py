"""The dialect of the Messages API: its error envelope, its models and its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.answer import Answer
from simulator.dialect import Speech
from simulator.messages_odd import OddMessagesSpeech
from simulator.messages_speech import PING, MessagesSpeech, frame
from simulator.request import Refused, Request
from simulator.wire import Json, bearer

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}

ERROR_STATUSES = {error_type: status for status, error_type in ERROR_TYPES.items()}


@dataclass(frozen=True, slots=True)
class MessagesDialect:
    request_id_header: str = "request-id"
    ping: bytes = frame(PING)

    def check_key(self, headers: Mapping[str, str]) -> None:
        if not headers.get("x-api-key") and not bearer(headers):
            raise Refused("Authorization or x-api-key header is required", 401)

    def not_found(self, _method: str, _path: str) -> Refused:
        return Refused("Not found", 404)

    def unknown_model(self, name: str) -> Refused:
        return Refused(f"model: {name}", 404)

    def refusal(self, refused: Refused, request_id: str) -> Json:
        return self.failure(refused.status, None, None, refused.message, request_id)

    def failure(self, status: int, error_type: str | None, _code: str | None, message: str, request_id: str) -> Json:
        if error_type is None:
            error_type = ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": error_type, "message": message}, "request_id": request_id}

    def status_of(self, error_type: str | None) -> int:
        return ERROR_STATUSES.get(error_type or "", 500)

    def error_frame(self, envelope: Json) -> bytes:
        return frame(envelope)

    def models(self, names: Sequence[str], query: Mapping[str, list[str]]) -> Json:
        limit = _limit(query)
        if (after := _one_of(names, query, "after_id")) is not None:
            left = names[names.index(after) + 1 :]
            page, has_more = left[:limit], len(left) > limit
        elif (before := _one_of(names, query, "before_id")) is not None:
            left = names[: names.index(before)]
            page, has_more = left[-limit:], len(left) > limit
        else:
            page, has_more = names[:limit], len(names) > limit
        return {
            "data": [self.model(name) for name in page],
            "has_more": has_more,
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }

    def model(self, name: str) -> Json:
        return {
            "type": "model",
            "id": name,
            "display_name": f"{name} (simulated)",
            "created_at": "2026-01-01T00:00:00Z",
            "lifecycle": "active",
            "max_input_tokens": 200_000,
            "max_tokens": 200_000,
        }

    def speech(self, _request: Request, answer: Answer, odd: frozenset[str]) -> Speech:
        return OddMessagesSpeech(answer, odd) if odd else MessagesSpeech(answer)


def _limit(query: Mapping[str, list[str]]) -> int:
    text = query.get("limit", ["20"])[0]
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1_000):
        raise Refused("limit: Input should be an integer from 1 to 1000")
    return int(text)


def _one_of(names: Sequence[str], query: Mapping[str, list[str]], cursor: str) -> str | None:
    name = query.get(cursor, [None])[0]
    if name is not None and name not in names:
        raise Refused(f"{cursor}: there is no such model")
    return name


MESSAGES = MessagesDialect()
