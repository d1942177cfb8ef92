"""messages.create: what a program asks for, and the whole answers that it gets."""

import asyncio
import inspect
from typing import Any

from anthropic import Anthropic, AsyncAnthropic
from seen import FAST, RUN, message, tell, user

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WEATHER = {
    "name": "get_weather",
    "description": "The weather at a place.",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"place": "Turin"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Rain."}]}

CASES: dict[str, dict[str, Any]] = {
    "text": {"messages": user("Hello there.")},
    "characters": {"messages": user("text=emoji")},
    "lines": {"messages": user("text=lines")},
    "frames in the text": {"messages": user("text=sse")},
    "system and turns": {
        "system": [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": [{"type": "text", "text": "Hello!"}]},
            {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "again."}]},
        ],
    },
    "image": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DOT}},
                    {"type": "text", "text": "What is this?"},
                ],
            }
        ]
    },
    "tool use": {
        "tools": [WEATHER],
        "tool_choice": {"type": "any"},
        "messages": user(f"blocks=text+tool nonce={RUN}-tool"),
    },
    "tool result": {
        "tools": [WEATHER],
        "messages": [
            *user("How is the weather?"),
            {"role": "assistant", "content": [CALL]},
            {"role": "user", "content": [RESULT]},
        ],
    },
    "thinking": {
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "max_tokens": 2048,
        "messages": user("blocks=thinking+text"),
    },
    "citations": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "document",
                        "source": {"type": "text", "media_type": "text/plain", "data": "A simulated source."},
                        "citations": {"enabled": True},
                    },
                    {"type": "text", "text": "blocks=citations+text"},
                ],
            }
        ]
    },
    "prompt cache": {"messages": user("cached=30 cache-write=20")},
    "nothing said": {"messages": user("tokens=0")},
    "max_tokens": {"max_tokens": 3, "messages": user("Much.")},
    "refusal": {"messages": user("stop=refusal")},
    "stop_sequence": {"messages": user("stop=stop_sequence"), "stop_sequences": ["END"]},
    "pause_turn": {"messages": user("stop=pause_turn")},
    "context window": {"messages": user("stop=model_context_window_exceeded")},
    "fields the SDK lacks": {
        "messages": user("Warmly."),
        "metadata": {"user_id": "somebody"},
        "extra_body": {"temperature": 0.3, "top_k": 5},
        "extra_headers": {
            "anthropic-beta": "a-beta-2026-01-01,another-2026-02-02",
            "anthropic-version": "2023-06-01",  # the last version with a temperature
        },
        "extra_query": {"beta": "true"},
    },
}


def run() -> None:
    with Anthropic(max_retries=0) as client:
        for case, parameters in CASES.items():
            answer = client.messages.create(**{"model": FAST, "max_tokens": 500, **parameters})
            tell(case, "sync", **message(answer))
        raw = client.messages.with_raw_response.create(model=FAST, max_tokens=50, messages=user("Raw."))
        tell("raw", "sync", status=raw.status_code, **raw_facts(raw), **message(raw.parse()))


async def run_async() -> None:
    async with AsyncAnthropic(max_retries=0) as client:
        for case, parameters in CASES.items():
            answer = await client.messages.create(**{"model": FAST, "max_tokens": 500, **parameters})
            tell(case, "async", **message(answer))
        raw = await client.messages.with_raw_response.create(model=FAST, max_tokens=50, messages=user("Raw."))
        parsed: Any = raw.parse()
        answer = await parsed if inspect.isawaitable(parsed) else parsed  # it is not with the older SDK
        tell("raw", "async", status=raw.status_code, **raw_facts(raw), **message(answer))


def raw_facts(raw: Any) -> dict[str, Any]:
    return {
        "content_type": raw.headers["content-type"].partition(";")[0],
        "request_id_header": raw.headers["request-id"][:4],
        "retries": raw.retries_taken,
    }


if __name__ == "__main__":
    run()
    asyncio.run(run_async())
