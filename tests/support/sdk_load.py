"""Programs with the official SDK that make one call after another, and the outcome of each call."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from anthropic import AnthropicError, AsyncAnthropic

from tests.support.deployment import MODEL, Deployment


@dataclass
class SdkLoad:
    """No call has an Idempotency-Key; the SDK makes its own retries."""

    base_url: str
    name: str
    """The prefix of its calls' nonces."""
    words: str
    """The simulator's words in each prompt."""
    tokens: int
    """Tokens in each answer."""
    whole: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """The nonce and the SDK's exception, for each failed call."""
    longest_s: float = 0.0
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _is_over: bool = False

    @contextlib.asynccontextmanager
    async def running(self, *, streams: int, plain: int) -> AsyncIterator["SdkLoad"]:
        """Runs so many programs of each kind until the end of the block, where they finish their last calls."""
        async with AsyncAnthropic(base_url=self.base_url, api_key="none") as client:
            tasks = [asyncio.create_task(self._repeat(client, is_streamed=True)) for _ in range(streams)]
            tasks += [asyncio.create_task(self._repeat(client, is_streamed=False)) for _ in range(plain)]
            try:
                yield self
            finally:
                self._is_over = True
                await asyncio.gather(*tasks)

    async def bought_twice(self, deployment: Deployment) -> list[str]:
        """The nonces for which the LLM was called more than once."""
        calls = [call.nonce for call in await deployment.calls() if call.nonce.startswith(self.name)]
        return sorted({nonce for nonce in calls if calls.count(nonce) > 1})

    async def _repeat(self, client: AsyncAnthropic, *, is_streamed: bool) -> None:
        while not self._is_over:
            kind = "stream" if is_streamed else "plain"
            nonce = f"{self.name}-{kind}-{next(self._numbers)}"
            begun_s = time.monotonic()
            try:
                usage = await self._ask(client, nonce, is_streamed=is_streamed)
            except AnthropicError as error:
                self.broken.append(f"{nonce}: {type(error).__name__}: {error}")
            else:
                assert usage == self.tokens, f"{nonce}: {usage} tokens"
                self.whole.append(nonce)
            self.longest_s = max(self.longest_s, time.monotonic() - begun_s)

    async def _ask(self, client: AsyncAnthropic, nonce: str, *, is_streamed: bool) -> int:
        prompt = f"nonce={nonce} tokens={self.tokens} {self.words}"
        if not is_streamed:
            message = await client.messages.create(
                model=MODEL, max_tokens=1000, messages=[{"role": "user", "content": prompt}]
            )
            return message.usage.output_tokens
        async with client.messages.stream(
            model=MODEL, max_tokens=1000, messages=[{"role": "user", "content": prompt}]
        ) as stream:
            said = await stream.get_final_message()
            return said.usage.output_tokens if said.stop_reason else 0
