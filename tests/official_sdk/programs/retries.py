"""The SDK's own retries of a failed call, and what an Idempotency-Key changes."""

import asyncio
from typing import Any

from anthropic import Anthropic, APITimeoutError, AsyncAnthropic
from seen import FAST, RUN, tell, user


def asked(case: str, mode: str, words: str = "", **given: Any) -> dict[str, Any]:
    """Arguments of a call; the stand-in counts calls by the nonce in the prompt."""
    messages = user(f"nonce={RUN}-{case}-{mode} {words}")
    return {"model": FAST, "max_tokens": 500, "messages": messages, **given}


def key(case: str, mode: str) -> dict[str, str]:
    return {"Idempotency-Key": f"{RUN}-{case}-{mode}"}


def run() -> None:
    client = Anthropic(timeout=20)
    answer = client.messages.create(**asked("overload-that-passes", "sync", "fail=529x1,retry-after-ms=1"))
    tell("an overload that passes", "sync", stop_reason=answer.stop_reason)

    twice = asked("twice", "sync", extra_headers=key("twice", "sync"))
    tell("the same key twice", "sync", same=client.messages.create(**twice) == client.messages.create(**twice))

    # No attempt is long enough for the whole answer.
    slow = asked("impatient-with-a-key", "sync", "first-ms=1200", timeout=0.8, extra_headers=key("slow", "sync"))
    try:
        tell("impatient with a key", "sync", error=None, stop_reason=client.messages.create(**slow).stop_reason)
    except APITimeoutError:
        tell("impatient with a key", "sync", error="APITimeoutError", stop_reason=None)

    # The connection is closed in the middle of the answer, and the request is repeated.
    streamed = asked("stream-again", "sync", "tokens=40 gap-ms=10", extra_headers=key("again", "sync"))
    with client.messages.stream(**streamed) as stream:
        next(iter(stream.text_stream))
    with client.messages.stream(**streamed) as stream:
        tell("a stream again", "sync", said="".join(stream.text_stream))


async def run_async() -> None:
    client = AsyncAnthropic(timeout=20)
    answer = await client.messages.create(**asked("overload-that-passes", "async", "fail=529x1,retry-after-ms=1"))
    tell("an overload that passes", "async", stop_reason=answer.stop_reason)

    twice = asked("twice", "async", extra_headers=key("twice", "async"))
    first, second = await asyncio.gather(client.messages.create(**twice), client.messages.create(**twice))
    tell("the same key twice", "async", same=first == second)

    async def impatient(case: str, headers: dict[str, str]) -> None:
        slow = asked(case, "async", "first-ms=1200", timeout=0.8, extra_headers=headers)
        try:
            answer = await client.messages.create(**slow)
            tell(case.replace("-", " "), "async", error=None, stop_reason=answer.stop_reason)
        except APITimeoutError:
            tell(case.replace("-", " "), "async", error="APITimeoutError", stop_reason=None)

    await asyncio.gather(impatient("impatient", {}), impatient("impatient-with-a-key", key("slow", "async")))

    streamed = asked("stream-again", "async", "tokens=40 gap-ms=10", extra_headers=key("again", "async"))
    async with client.messages.stream(**streamed) as stream:
        await anext(aiter(stream.text_stream))
    async with client.messages.stream(**streamed) as stream:
        tell("a stream again", "async", said="".join([text async for text in stream.text_stream]))


if __name__ == "__main__":
    run()
    asyncio.run(run_async())
