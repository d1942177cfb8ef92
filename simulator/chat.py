"""The dialect of the Chat Completions API: OpenAI's error envelope, its models and its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.answer import Answer
from simulator.chat_odd import OddChatSpeech
from simulator.chat_speech import ChatSpeech, frame
from simulator.dialect import Speech
from simulator.request import Refused, Request
from simulator.wire import Json, bearer

ERRORS: dict[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("request_forbidden", "unsupported_country_region_territory"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
    500: ("server_error", None),
}
"""Type and code, by status."""

RATE_LIMITS = ("requests", "tokens", "rate_limit_error", "rate_limit_exceeded")
"""The types of a 429 that can be retried: OpenAI's two name what was exceeded; other servers send the other two."""

CODES = {"insufficient_quota": "insufficient_quota", **dict.fromkeys(RATE_LIMITS, "rate_limit_exceeded")}
"""By type, for the types that imply a code."""

STATUSES = {"invalid_request_error": 400, "insufficient_quota": 429, **dict.fromkeys(RATE_LIMITS, 429)}

PING = b": ping\n\n"


@dataclass(frozen=True, slots=True)
class ChatDialect:
    request_id_header: str = "x-request-id"
    ping: bytes = PING

    def check_key(self, headers: Mapping[str, str]) -> None:
        if not bearer(headers):
            raise Refused(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
                401,
                code="invalid_api_key",
            )

    def not_found(self, method: str, path: str) -> Refused:
        return Refused(f"Invalid URL ({method} {path})", 404)

    def unknown_model(self, name: str) -> Refused:
        message = f"The model `{name}` does not exist or you do not have access to it."
        return Refused(message, 404, code="model_not_found")

    def refusal(self, refused: Refused, _request_id: str) -> Json:
        error_type = "server_error" if refused.status >= 500 else "invalid_request_error"
        return _envelope(refused.message, error_type, refused.param, refused.code)

    def failure(self, status: int, error_type: str | None, code: str | None, message: str, _request_id: str) -> Json:
        default_type, default_code = ERRORS.get(status, ERRORS[500 if status >= 500 else 400])
        if error_type is not None:
            default_code = CODES.get(error_type)
        return _envelope(message, error_type or default_type, None, code or default_code)

    def status_of(self, error_type: str | None) -> int:
        return STATUSES.get(error_type or "", 500)

    def error_frame(self, envelope: Json) -> bytes:
        return frame(envelope)

    def models(self, names: Sequence[str], _query: Mapping[str, list[str]]) -> Json:
        return {"object": "list", "data": [self.model(name) for name in names]}

    def model(self, name: str) -> Json:
        return {"id": name, "object": "model", "created": 1_767_225_600, "owned_by": "simulator"}

    def speech(self, request: Request, answer: Answer, odd: frozenset[str]) -> Speech:
        if odd:
            return OddChatSpeech(answer, odd, usage_wanted=request.usage_wanted)
        return ChatSpeech(answer, usage_wanted=request.usage_wanted)


def _envelope(message: str, error_type: str, param: str | None, code: str | None) -> Json:
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


CHAT = ChatDialect()
