"""The comparison: an API that calls the LLM inside the web request, as a good engineer would write it.

It uses FastAPI, the official SDK's streaming helper (`create(stream=True)` needs a tenth less CPU but gives no final
message), one client for the whole process, and a StreamingResponse of server-sent events. It makes none of tokenspool's
promises: the answer is lost with this process or this connection.
The bench runs it as `uvicorn --factory bench.in_request_app:create_app`, with uvloop and httptools.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anthropic import APIError, AsyncAnthropic
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel


class Prompt(BaseModel):
    prompt: str
    model: str
    max_tokens: int = 1024


def create_app() -> FastAPI:
    anthropic = AsyncAnthropic()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with anthropic:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/complete/stream")
    async def complete_stream(prompt: Prompt) -> StreamingResponse:
        return StreamingResponse(
            _frames(anthropic, prompt),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    return app


async def _frames(anthropic: AsyncAnthropic, prompt: Prompt) -> AsyncIterator[str]:
    try:
        async with anthropic.messages.stream(
            model=prompt.model,
            max_tokens=prompt.max_tokens,
            messages=[{"role": "user", "content": prompt.prompt}],
        ) as stream:
            async for text in stream.text_stream:
                yield frame("delta", {"text": text})
            message = await stream.get_final_message()
        yield frame("done", {"output_tokens": message.usage.output_tokens})
    except APIError as error:
        yield frame("error", {"type": type(error).__name__})


def frame(event: str, payload: dict[str, str | int]) -> str:
    return f"event: {event}\ndata: {json.dumps(payload)}\n\n"
