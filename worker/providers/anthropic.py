"""The Anthropic Messages API. The official SDK does authentication, headers and errors; bytes and timers are ours.

It always streams. ``max_retries=0``, because the SDK's retries would multiply ours. The submitted request is sent byte
for byte except for ``model`` and ``stream``, so that members which the SDK does not know reach the upstream.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Final

import httpx2
import msgspec

import anthropic
from shared.completion import GarbledStream
from shared.model_info import ModelInfo
from shared.settings import Settings
from worker.outcome import Breakage, How, UpstreamError, classify
from worker.providers.answer_stream import AnswerStream, failure_of_call
from worker.providers.base import named
from worker.providers.members import MISFITS
from worker.providers.messages_stream import MessagesDecoder
from worker.providers.model_list import MOST_BYTES, anthropic_page, listed
from worker.providers.transport import (
    HEADERS,
    AiohttpTransport,
    DirectClient,
    PreparedCalls,
    connecting_within,
    read_whole,
)
from worker.rate_limit_headers import anthropic_allowance

_MOST_PAGES: Final = 5
_MOST_COUNT_BYTES: Final = 1 << 16


class AnthropicProvider:
    """One client, one connection pool."""

    def __init__(self, settings: Settings) -> None:
        key = settings.anthropic_api_key
        http_client = DirectClient(AiohttpTransport(connections=settings.concurrency))
        self._client = anthropic.AsyncAnthropic(
            api_key=key.get_secret_value() if key else "",
            base_url=settings.anthropic_base_url,
            max_retries=0,
            http_client=http_client,
        )
        self._messages = PreparedCalls(self._post_message, http_client)
        self._headers = {**HEADERS, "anthropic-version": settings.anthropic_version}

    @asynccontextmanager
    async def stream(
        self, request: bytes, *, model: str, beta: str = "", version: str = "", connect_timeout_s: float
    ) -> AsyncIterator[AnswerStream]:
        """See Provider."""
        try:
            response = await self._messages.send(
                _streaming(named(request, model)),
                headers=self._headers_of(beta, version),
                connect_timeout_s=connect_timeout_s,
            )
        except Exception as error:
            raise UpstreamError(failure_of_call(error, anthropic_allowance)) from error
        try:
            yield AnswerStream(response, MessagesDecoder(model), anthropic_allowance(response.headers))
        finally:
            await response.aclose()

    async def _post_message(
        self, content: bytes, headers: Mapping[str, str], timeout: httpx2.Timeout
    ) -> httpx2.Response:
        return await self._client.post(
            "/v1/messages", content=content, cast_to=httpx2.Response, options={"headers": headers, "timeout": timeout}
        )

    async def count_tokens(
        self, request: bytes, *, model: str, beta: str = "", version: str = "", connect_timeout_s: float
    ) -> int:
        """See Provider."""
        try:
            response = await self._client.post(
                "/v1/messages/count_tokens",
                content=named(request, model),
                cast_to=httpx2.Response,
                options={"headers": self._headers_of(beta, version), "timeout": connecting_within(connect_timeout_s)},
            )
            body = await read_whole(response, _MOST_COUNT_BYTES)
            return msgspec.json.decode(body, type=_Counted).input_tokens
        except (GarbledStream, *MISFITS) as error:
            raise UpstreamError(classify(Breakage(How.GARBLED, "its answer is not a count of tokens"))) from error
        except Exception as error:
            raise UpstreamError(failure_of_call(error, anthropic_allowance)) from error

    async def models(self) -> list[ModelInfo]:
        """See Provider."""
        return await listed(self._all_models(), anthropic_allowance)

    async def _all_models(self) -> list[ModelInfo]:
        models: list[ModelInfo] = []
        params = {"limit": "1000"}
        for _ in range(_MOST_PAGES):
            response = await self._client.get(
                "/v1/models", cast_to=httpx2.Response, options={"headers": self._headers, "params": params}
            )
            page = anthropic_page(await read_whole(response, MOST_BYTES))
            models += page.models
            if page.after_id is None:
                break
            params = {**params, "after_id": page.after_id}
        return models

    def _headers_of(self, beta: str, version: str) -> dict[str, str]:
        """Our headers, overridden by the caller's if those are valid."""
        own = {"anthropic-beta": beta, "anthropic-version": version}
        return self._headers | {
            name: value for name, value in own.items() if value.isascii() and value.isprintable() and value
        }

    async def close(self) -> None:
        """See Provider."""
        await self._client.close()


class _Counted(msgspec.Struct):
    input_tokens: Annotated[int, msgspec.Meta(ge=0)]


def _streaming(request: bytes) -> bytes:
    """The request with ``"stream": true`` inserted before its closing brace."""
    body = request.rstrip()
    head = body[:-1].rstrip()
    return head + (b'"stream":true}' if head.endswith(b"{") else b',"stream":true}')
