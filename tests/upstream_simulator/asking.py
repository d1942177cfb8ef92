"""The two official SDKs as clients of the simulator, each with its three kinds of call."""

from dataclasses import dataclass
from typing import Any

from anthropic import AsyncAnthropic
from anthropic.types import Message, MessageParam, RawMessageStreamEvent
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionUserMessageParam

MODEL = "sim-t6-g1-f1"


def user(prompt: str) -> list[MessageParam]:
    return [{"role": "user", "content": prompt}]


@dataclass(frozen=True)
class Asking:
    client: AsyncAnthropic

    async def whole(self, prompt: str, *, model: str = MODEL, max_tokens: int = 1_000, **more: Any) -> Message:
        """The message of a call without a stream."""
        message = await self.client.messages.create(
            model=model, max_tokens=max_tokens, messages=user(prompt), stream=False, **more
        )
        assert isinstance(message, Message)
        return message

    async def events(
        self, prompt: str, *, model: str = MODEL, max_tokens: int = 1_000, **more: Any
    ) -> list[RawMessageStreamEvent]:
        """The events of a stream, as the SDK passes them on."""
        stream = await self.client.messages.create(
            model=model, max_tokens=max_tokens, messages=user(prompt), stream=True, **more
        )
        async with stream:
            return [event async for event in stream]

    async def streamed(self, prompt: str, *, model: str = MODEL, max_tokens: int = 1_000, **more: Any) -> Message:
        """The message that the SDK builds from a stream."""
        async with self.client.messages.stream(
            model=model, max_tokens=max_tokens, messages=user(prompt), **more
        ) as stream:
            return await stream.get_final_message()


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def chat_user(prompt: str) -> list[ChatCompletionUserMessageParam]:
    return [{"role": "user", "content": prompt}]


@dataclass(frozen=True)
class ChatAsking:
    client: AsyncOpenAI

    async def whole(self, prompt: str, *, model: str = MODEL, **more: Any) -> ChatCompletion:
        """The completion of a call without a stream."""
        completion = await self.client.chat.completions.create(
            model=model, messages=chat_user(prompt), stream=False, **more
        )
        assert isinstance(completion, ChatCompletion)
        return completion

    async def chunks(self, prompt: str, *, model: str = MODEL, **more: Any) -> list[ChatCompletionChunk]:
        """The chunks of a stream with usage, as the SDK passes them on."""
        stream = await self.client.chat.completions.create(
            **{"model": model, "messages": chat_user(prompt), "stream_options": {"include_usage": True}} | more,
            stream=True,
        )
        async with stream:
            return [chunk async for chunk in stream]

    async def streamed(self, prompt: str, *, model: str = MODEL, **more: Any) -> ChatCompletion:
        """The completion that the SDK builds from a stream."""
        async with self.client.chat.completions.stream(
            model=model, messages=chat_user(prompt), stream_options={"include_usage": True}, **more
        ) as stream:
            return await stream.get_final_completion()


def chat_text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
