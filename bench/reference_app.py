"""Two bare endpoints that show what the framework alone costs: an echo, and an idle SSE stream.

It runs with the same uvicorn settings as the API. The submit row is compared with `/echo`; the memory row with `/idle`,
which is sse-starlette alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from sse_starlette import EventSourceResponse, ServerSentEvent


def create_app() -> FastAPI:
    app = FastAPI()

    @app.post("/echo")
    async def echo(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @app.get("/idle/{job_id}")
    async def idle(job_id: str) -> EventSourceResponse:
        return EventSourceResponse(_one_frame_then_nothing(job_id))

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    return app


async def _one_frame_then_nothing(job_id: str) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(event="queued", data=job_id)
    await asyncio.Event().wait()
