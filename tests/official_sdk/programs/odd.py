"""Answers of odd shape, each streamed and whole. The test passes the cases as JSON in the environment."""

import asyncio
import inspect
import json
import os
from typing import Any

from anthropic import APIStatusError, AsyncAnthropic
from seen import tell

CASES: dict[str, dict[str, Any]] = json.loads(os.environ["CASES"])


async def streamed(client: AsyncAnthropic, parameters: dict[str, Any]) -> dict[str, Any]:
    async with client.messages.stream(**parameters) as stream:
        said = "".join([text async for text in stream.text_stream])
        final = await stream.get_final_message()
        return {**seen(final, stream.response.headers), "said": said}


async def whole(client: AsyncAnthropic, parameters: dict[str, Any]) -> dict[str, Any]:
    raw = await client.messages.with_raw_response.create(**parameters)
    parsed: Any = raw.parse()
    return seen(await parsed if inspect.isawaitable(parsed) else parsed, raw.headers)  # it is not with the older SDK


def seen(answer: Any, headers: Any) -> dict[str, Any]:
    return {"message": answer.model_dump(mode="json", warnings=False), "job_id": headers["x-job-id"]}


async def try_out(client: AsyncAnthropic, case: str, mode: str) -> None:
    ask = {"stream": streamed, "whole": whole}[mode]
    try:
        tell(case, mode, **await ask(client, CASES[case][mode]))
    except APIStatusError as error:
        tell(case, mode, error=type(error).__name__, status=error.status_code, message=str(error))
    except Exception as error:  # no SDK may raise for these answers
        tell(case, mode, error=type(error).__name__, message=str(error))


async def run() -> None:
    async with AsyncAnthropic(max_retries=0, timeout=30) as client:
        await asyncio.gather(*[try_out(client, case, mode) for case in CASES for mode in CASES[case]])


if __name__ == "__main__":
    asyncio.run(run())
