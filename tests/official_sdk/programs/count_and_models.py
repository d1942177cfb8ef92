"""messages.count_tokens, models.list and models.retrieve."""

import asyncio
from typing import Any

from anthropic import Anthropic, APIStatusError, AsyncAnthropic
from seen import FAST, error, tell, user

TOOL = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}}}
COUNTED: dict[str, dict[str, Any]] = {
    "a prompt": {"messages": user("One two three.")},
    "with system and tools": {"system": "Be short.", "tools": [TOOL], "messages": user("One two three.")},
}
NOT_COUNTED: dict[str, dict[str, Any]] = {
    "no messages": {"messages": []},
    "refused": {"messages": user("fail=400")},
    "no such model": {"model": "simply-none", "messages": user("Hello.")},
}
CLAUDE = "claude-sonnet-4-6"


def run() -> None:
    client = Anthropic(max_retries=0)
    for case, given in COUNTED.items():
        counted = client.messages.count_tokens(**{"model": FAST, **given})
        tell(f"count of {case}", "sync", **counted.model_dump(mode="json"))
    for case, given in NOT_COUNTED.items():
        try:
            client.messages.count_tokens(**{"model": FAST, **given})
        except APIStatusError as caught:
            tell(f"count of {case}", "sync", **error(caught))
    models = client.models.list()
    tell("models", "sync", page=page(models), models=[model.id for model in models])
    tell("models by two", "sync", models=[model.id for model in client.models.list(limit=2)])
    back = client.models.list(limit=2, before_id=models.data[-1].id)
    tell("models backwards", "sync", models=[model.id for model in back])
    tell("a model", "sync", **known(client.models.retrieve(CLAUDE)))
    try:
        client.models.retrieve("simply-none")
    except APIStatusError as caught:
        tell("a model that is none", "sync", **error(caught))


async def run_async() -> None:
    client = AsyncAnthropic(max_retries=0)
    for case, given in COUNTED.items():
        counted = await client.messages.count_tokens(**{"model": FAST, **given})
        tell(f"count of {case}", "async", **counted.model_dump(mode="json"))
    for case, given in NOT_COUNTED.items():
        try:
            await client.messages.count_tokens(**{"model": FAST, **given})
        except APIStatusError as caught:
            tell(f"count of {case}", "async", **error(caught))
    models = await client.models.list()
    tell("models", "async", page=page(models), models=[model.id async for model in models])
    tell("models by two", "async", models=[model.id async for model in client.models.list(limit=2)])
    back = client.models.list(limit=2, before_id=models.data[-1].id)
    tell("models backwards", "async", models=[model.id async for model in back])
    tell("a model", "async", **known(await client.models.retrieve(CLAUDE)))
    try:
        await client.models.retrieve("simply-none")
    except APIStatusError as caught:
        tell("a model that is none", "async", **error(caught))


def page(models: Any) -> dict[str, Any]:
    return {
        "first": models.first_id == models.data[0].id,
        "last": models.last_id == models.data[-1].id,
        "has_more": models.has_more,
    }


def known(model: Any) -> dict[str, Any]:
    seen = model.model_dump(mode="json")
    return {
        "id": seen["id"],
        "type": seen["type"],
        "is_named": bool(seen["display_name"]),
        "dated": bool(seen["created_at"]),
    }


if __name__ == "__main__":
    run()
    asyncio.run(run_async())
