"""The Anthropic Messages API, through the official SDK: its authentication, headers and errors; our bytes and timers.

Always streaming, never retrying by itself (``max_retries=0``: the SDK's own retries would multiply ours). The request
goes out byte for byte as it was submitted but for ``stream``, so that what the SDK does not know of passes too.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
import httpx2
import msgspec

import anthropic
from shared.completion import GarbledStream
from shared.settings import Settings
from worker.outcome import Failure, UpstreamError, broken, failure_of, truncated
from worker.providers.base import UpstreamEvent
from worker.providers.event_stream import EventDecoder
from worker.providers.transport import AiohttpTransport, BodyStream, DirectClient
from worker.retry_after import retry_after_s

_HEADERS: Final = {
    "content-type": "application/json",
    "accept-encoding": "identity",  # what comes is read as it is; the SDK would ask for gzip
    # What ``with_streaming_response`` sets: without it the SDK reads the whole body before it gives the response back.
    "X-Stainless-Raw-Response": "stream",
}


class AnthropicProvider:
    """One client, one connection pool."""

    def __init__(self, settings: Settings) -> None:
        key = settings.anthropic_api_key
        transport = AiohttpTransport(connections=settings.concurrency, connect_timeout_s=settings.connect_timeout_s)
        self._client = anthropic.AsyncAnthropic(
            api_key=key.get_secret_value() if key else "",
            base_url=settings.anthropic_base_url,
            max_retries=0,
            http_client=DirectClient(transport),
        )

    @asynccontextmanager
    async def stream(self, request: bytes) -> AsyncIterator["AnthropicStream"]:
        """See Provider."""
        try:
            response = await self._client.post(
                "/v1/messages",
                content=_streaming(request),
                cast_to=httpx2.Response,
                options={"headers": _HEADERS},
            )
        except (anthropic.AnthropicError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            raise UpstreamError(_classified(error)) from error
        try:
            yield AnthropicStream(response.extensions["body"])
        finally:
            await response.aclose()

    async def close(self) -> None:
        """See Provider."""
        await self._client.close()


class AnthropicStream:
    """See UpstreamStream."""

    def __init__(self, body: BodyStream) -> None:
        self._body = body
        self._decoder = EventDecoder()

    async def read(self) -> list[UpstreamEvent]:
        """See UpstreamStream."""
        try:
            while True:
                piece = await self._body.read_some()
                if not piece:
                    return []
                if events := self._decoder.feed(piece):
                    for event in events:
                        if event.name == "error":
                            raise UpstreamError(_in_stream(event.data))
                    return events
        except GarbledStream as error:
            raise UpstreamError(truncated(str(error))) from error
        except (httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            raise UpstreamError(truncated("the connection was cut")) from error


class _ErrorBody(msgspec.Struct, frozen=True):
    type: str = ""
    message: str = ""


class _ErrorEvent(msgspec.Struct):
    error: _ErrorBody = _ErrorBody()


def _streaming(request: bytes) -> bytes:
    """The request with ``"stream": true``: a JSON object always has a closing brace to put it before."""
    body = request.rstrip()
    head = body[:-1].rstrip()
    return head + (b'"stream":true}' if head.endswith(b"{") else b',"stream":true}')


def _in_stream(data: bytes) -> Failure:
    try:
        body = msgspec.json.decode(data, type=_ErrorEvent).error
    except msgspec.DecodeError:
        return truncated("an error event is not JSON")
    return failure_of(status=None, error_type=body.type, message=body.message)


def _classified(error: Exception) -> Failure:
    """What the SDK raises before the stream begins."""
    match error:
        case anthropic.APIStatusError():
            response = error.response
            body = error.body
            inner = body.get("error") if isinstance(body, dict) else None
            error_type, message = (inner.get("type"), inner.get("message")) if isinstance(inner, dict) else (None, None)
            return failure_of(
                status=error.status_code,
                error_type=error_type if isinstance(error_type, str) else None,
                message=message if isinstance(message, str) else "",
                retry_after_s=retry_after_s(response.headers),
            )
        case anthropic.APITimeoutError():
            return broken("it did not answer in time")
        case _:
            return broken("no connection to it")
