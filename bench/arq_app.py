"""A second comparison: arq with its defaults and Redis pub/sub, the usual first version of such a service.

The API enqueues and subscribes; the worker publishes each token. Nothing is stored, fenced or resumable. For a fair
comparison, two settings differ from arq's defaults: `max_jobs` is 400 like our worker's, not 10, and the worker runs on
uvloop. The bench runs it as `uvicorn --factory bench.arq_app:create_app` and `arq bench.arq_app.Worker`.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from anthropic import AsyncAnthropic
from arq import ArqRedis, create_pool
from arq.connections import RedisSettings
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from bench.in_request_app import Prompt, frame
from bench.systems import ARQ_REDIS_URL_VARIABLE

DONE = "done"


def _redis_settings() -> RedisSettings:
    return RedisSettings.from_dsn(os.environ[ARQ_REDIS_URL_VARIABLE])


def create_app() -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.redis = await create_pool(_redis_settings())
        yield
        await app.state.redis.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/complete/stream")
    async def complete_stream(prompt: Prompt) -> StreamingResponse:
        return StreamingResponse(_frames(app.state.redis, prompt), media_type="text/event-stream")

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    return app


async def _frames(redis: ArqRedis, prompt: Prompt) -> AsyncIterator[str]:
    channel = uuid.uuid4().hex
    async with redis.pubsub(ignore_subscribe_messages=True) as follower:
        await follower.subscribe(channel)
        await redis.enqueue_job("complete", channel, prompt.prompt, prompt.model, prompt.max_tokens)
        async for message in follower.listen():
            event, payload = json.loads(message["data"])
            yield frame(event, payload)
            if event == DONE:
                return


async def complete(context: dict[str, Any], channel: str, prompt: str, model: str, max_tokens: int) -> None:
    redis: ArqRedis = context["redis"]
    anthropic: AsyncAnthropic = context["anthropic"]
    async with anthropic.messages.stream(
        model=model, max_tokens=max_tokens, messages=[{"role": "user", "content": prompt}]
    ) as stream:
        async for text in stream.text_stream:
            await redis.publish(channel, json.dumps(["delta", {"text": text}]))
        message = await stream.get_final_message()
    await redis.publish(channel, json.dumps([DONE, {"output_tokens": message.usage.output_tokens}]))


async def open_anthropic(context: dict[str, Any]) -> None:
    context["anthropic"] = AsyncAnthropic()


# arq's command line uses the policy's loop and offers no other way to choose one.
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


class Worker:
    """arq's command line reads these names."""

    functions = (complete,)
    on_startup = open_anthropic
    max_jobs = 400
    redis_settings = _redis_settings()
