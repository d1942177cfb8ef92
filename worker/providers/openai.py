"""Chat completions, of OpenAI or any server that speaks them, through the official SDK; the answers become Messages events.

It always streams. ``max_retries=0``, because the SDK's retries would multiply ours. Two pure modules convert the request
(chat_request.py) and the answer (chat_stream.py); this one makes the call and reads its errors and limits.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import httpx2

import openai
from shared.model_info import ModelInfo
from shared.settings import Settings
from worker.outcome import Refusal, UpstreamError, classify
from worker.providers.answer_stream import AnswerStream, failure_of_call
from worker.providers.chat_request import chat_request
from worker.providers.chat_stream import ChatDecoder
from worker.providers.model_list import MOST_BYTES, listed, openai_models
from worker.providers.transport import HEADERS, AiohttpTransport, DirectClient, PreparedCalls, read_whole
from worker.rate_limit_headers import openai_allowance

_NO_COUNT: Final = Refusal(
    404, "not_found_error", "the upstream of this model speaks chat completions, which cannot count a request's tokens"
)


class OpenAIProvider:
    """One client, one connection pool."""

    def __init__(self, settings: Settings) -> None:
        key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else ""
        self._headers: dict[str, str | openai.Omit] = {**HEADERS}
        if not key:  # a self-hosted server may need none, but the SDK does: then it gets one that is never sent
            self._headers["Authorization"] = openai.Omit()
        self._takes_max_completion_tokens = _is_openai(settings.openai_base_url)
        http_client = DirectClient(AiohttpTransport(connections=settings.concurrency))
        self._client = openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=settings.openai_base_url,
            max_retries=0,
            http_client=http_client,
        )
        self._completions = PreparedCalls(self._post_completion, http_client)

    @asynccontextmanager
    async def stream(
        self, request: bytes, *, model: str, beta: str = "", version: str = "", connect_timeout_s: float
    ) -> AsyncIterator[AnswerStream]:
        """See Provider."""
        del beta, version  # headers of Anthropic's API only
        try:
            body = chat_request(request, model=model, takes_max_completion_tokens=self._takes_max_completion_tokens)
            response = await self._completions.send(body, headers=self._headers, connect_timeout_s=connect_timeout_s)
        except UpstreamError:
            raise
        except Exception as error:
            raise UpstreamError(failure_of_call(error, openai_allowance)) from error
        try:
            yield AnswerStream(response, ChatDecoder(model), openai_allowance(response.headers))
        finally:
            await response.aclose()

    async def _post_completion(
        self, content: bytes, headers: Mapping[str, str | openai.Omit], timeout: httpx2.Timeout
    ) -> httpx2.Response:
        return await self._client.post(
            "/chat/completions",
            content=content,
            cast_to=httpx2.Response,
            options={"headers": headers, "timeout": timeout},
        )

    async def count_tokens(
        self, request: bytes, *, model: str, beta: str = "", version: str = "", connect_timeout_s: float
    ) -> int:
        """See Provider."""
        del request, model, beta, version, connect_timeout_s
        raise UpstreamError(classify(_NO_COUNT), was_asked=False)

    async def models(self) -> list[ModelInfo]:
        """See Provider."""
        return await listed(self._all_models(), openai_allowance)

    async def _all_models(self) -> list[ModelInfo]:
        response = await self._client.get("/models", cast_to=httpx2.Response, options={"headers": self._headers})
        return openai_models(await read_whole(response, MOST_BYTES))

    async def close(self) -> None:
        """See Provider."""
        await self._client.close()


_OPENAI_HOSTS: Final = (".openai.com", ".openai.azure.com")


def _is_openai(base_url: str) -> bool:
    """Whether it is OpenAI's own API: its newer models refuse ``max_tokens``, the only name that all other servers know."""
    return f".{httpx2.URL(base_url).host}".endswith(_OPENAI_HOSTS)
