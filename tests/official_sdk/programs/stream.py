"""messages.stream, create(stream=True) and the bytes themselves."""

import asyncio
import json
from typing import Any

from anthropic import Anthropic, AsyncAnthropic
from seen import FAST, RUN, error, model_of, tell, user

WEATHER = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}}}

CASES: dict[str, dict[str, Any]] = {
    "text": {"messages": user("Hello there.")},
    "characters": {"messages": user("text=emoji")},
    "frames in the text": {"messages": user("text=sse")},
    "all blocks": {
        "tools": [WEATHER],
        "messages": user(f"blocks=thinking+text+citations+tool+tool nonce={RUN}-blocks"),
    },
    "max_tokens": {"max_tokens": 3, "messages": user("Much.")},
    "refusal": {"messages": user("stop=refusal")},
    "nothing said": {"messages": user("tokens=0")},
}
FAILURES: dict[str, dict[str, Any]] = {
    "refused at once": {"messages": user("fail=400")},
    "no such model": {"model": "simply-none", "messages": user("Hello.")},
    "overloaded in the middle": {"messages": user("error=3,type=overloaded_error")},
    "cut in the middle": {"messages": user("end=3")},
    "connection lost in the middle": {"messages": user("rst=3")},
    "broken in the middle": {"messages": user("error=3,type=api_error")},
}


def parameters(**given: Any) -> dict[str, Any]:
    return {"model": FAST, "max_tokens": 500, **given}


def run() -> None:
    client = Anthropic(max_retries=0)
    for case, given in CASES.items():
        with client.messages.stream(**parameters(**given)) as stream:
            said = "".join(stream.text_stream)
            tell(f"text of {case}", "sync", said=said, **message_of(stream.get_final_message()))
        with client.messages.stream(**parameters(**given)) as stream:
            events = [event_seen(event) for event in stream]
            tell(
                f"events of {case}",
                "sync",
                events=events,
                said=stream.get_final_text() if "t" in text_of(stream) else "",
            )
        with client.messages.create(**parameters(**given), stream=True) as stream:
            tell(f"raw events of {case}", "sync", events=[event_seen(event) for event in stream])
    for case, failing in FAILURES.items():
        given = {"model": model_of(case, "sync"), **failing}
        tell(case, "sync", **fails(client, given))
        tell(f"helper, {case}", "sync", **helper_fails(client, given))
    with client.messages.with_streaming_response.create(**parameters(messages=user("Raw.")), stream=True) as raw:
        tell("lines", "sync", **lines_seen(raw, list(raw.iter_lines())))
    with client.messages.stream(**parameters(messages=user("tokens=400 gap-ms=10"))) as stream:
        tell("left early", "sync", began=bool(next(iter(stream.text_stream))))


async def run_async() -> None:
    client = AsyncAnthropic(max_retries=0)
    for case, given in CASES.items():
        async with client.messages.stream(**parameters(**given)) as stream:
            said = "".join([text async for text in stream.text_stream])
            tell(f"text of {case}", "async", said=said, **message_of(await stream.get_final_message()))
        async with client.messages.stream(**parameters(**given)) as stream:
            events = [event_seen(event) async for event in stream]
            tell(
                f"events of {case}",
                "async",
                events=events,
                said=await stream.get_final_text() if "t" in text_of(stream) else "",
            )
        async with await client.messages.create(**parameters(**given), stream=True) as stream:
            tell(f"raw events of {case}", "async", events=[event_seen(event) async for event in stream])
    for case, failing in FAILURES.items():
        given = {"model": model_of(case, "async"), **failing}
        tell(case, "async", **await fails_async(client, given))
        tell(f"helper, {case}", "async", **await helper_fails_async(client, given))
    async with client.messages.with_streaming_response.create(**parameters(messages=user("Raw.")), stream=True) as raw:
        tell("lines", "async", **lines_seen(raw, [line async for line in raw.iter_lines()]))
    async with client.messages.stream(**parameters(messages=user("tokens=400 gap-ms=10"))) as stream:
        tell("left early", "async", began=bool(await anext(aiter(stream.text_stream))))


def message_of(answer: Any) -> dict[str, Any]:
    return {"final": answer.model_dump(mode="json")}


def text_of(stream: Any) -> str:
    """Returns "t" if the answer has a text block; without one, get_final_text raises."""
    return "t" if any(block.type == "text" for block in stream.current_message_snapshot.content) else ""


def event_seen(event: Any) -> Any:
    """An event of the SDK's helper; if it holds the whole message so far, only its type."""
    if event.type in ("text", "input_json", "thinking", "signature", "citation"):
        return {"type": event.type}
    return event.model_dump(mode="json")


def lines_seen(raw: Any, lines: list[str]) -> dict[str, Any]:
    named = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    typed = [json.loads(line.removeprefix("data: "))["type"] for line in lines if line.startswith("data: ")]
    return {
        "status": raw.status_code,
        "content_type": raw.headers["content-type"].partition(";")[0],
        "has_request_id": bool(raw.headers["request-id"]),
        "names_are_types": named == typed,
        "first": named[0],
        "last": named[-1],
    }


def fails(client: Anthropic, given: dict[str, Any]) -> dict[str, Any]:
    said = ""
    try:
        for event in client.messages.create(**parameters(**given), stream=True):
            said += text_in(event)
    except Exception as caught:
        return {"said": said, **error(caught)}
    return {"said": said, "error": None}


def helper_fails(client: Anthropic, given: dict[str, Any]) -> dict[str, Any]:
    said = ""
    try:
        with client.messages.stream(**parameters(**given)) as stream:
            for text in stream.text_stream:
                said += text
    except Exception as caught:
        return {"said": said, **error(caught)}
    return {"said": said, "error": None}


async def fails_async(client: AsyncAnthropic, given: dict[str, Any]) -> dict[str, Any]:
    said = ""
    try:
        async for event in await client.messages.create(**parameters(**given), stream=True):
            said += text_in(event)
    except Exception as caught:
        return {"said": said, **error(caught)}
    return {"said": said, "error": None}


async def helper_fails_async(client: AsyncAnthropic, given: dict[str, Any]) -> dict[str, Any]:
    said = ""
    try:
        async with client.messages.stream(**parameters(**given)) as stream:
            async for text in stream.text_stream:
                said += text
    except Exception as caught:
        return {"said": said, **error(caught)}
    return {"said": said, "error": None}


def text_in(event: Any) -> str:
    return event.delta.text if event.type == "content_block_delta" and event.delta.type == "text_delta" else ""


if __name__ == "__main__":
    run()
    asyncio.run(run_async())
