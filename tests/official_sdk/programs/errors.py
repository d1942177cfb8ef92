"""Every class of error that a program may want to catch."""

import asyncio
from typing import Any

from anthropic import Anthropic, AsyncAnthropic
from seen import error, model_of, tell, user

CASES: dict[str, dict[str, Any]] = {
    "max_tokens of 0": {"max_tokens": 0, "messages": user("Hello.")},
    "no messages": {"messages": []},
    "a member that is unknown": {"messages": user("Hello."), "extra_body": {"nonsense": 1}},
    "a version without temperatures": {
        "messages": user("Hello."),
        "extra_body": {"temperature": 1.0},
        "extra_headers": {"anthropic-version": "2026-10-21"},
    },
    "refused": {"messages": user("fail=400")},
    "credentials": {"messages": user("fail=401")},
    "billing": {"messages": user("fail=402")},
    "permission": {"messages": user("fail=403")},
    "not found": {"messages": user("fail=404")},
    "no such model": {"model": "simply-none", "messages": user("Hello.")},
    "too large": {"messages": user("fail=413")},
    "unprocessable": {"messages": user("fail=422")},
    "conflict": {"messages": user("fail=409")},
    "internal error": {"messages": user("fail=500")},
    "unavailable": {"messages": user("fail=503")},
    "overloaded": {"messages": user("fail=529")},
    "rate limit": {"messages": user("fail=429,retry-after=1")},
    "no answer in time": {"messages": user("stall=0"), "timeout": 0.5},
    "connection reset": {"messages": user("rst=head")},
}


def parameters(case: str, mode: str) -> dict[str, Any]:
    return {"model": model_of(case, mode), "max_tokens": 500, **CASES[case]}


def run() -> None:
    client = Anthropic(max_retries=0)
    for case in CASES:
        try:
            client.messages.create(**parameters(case, "sync"))
            tell(case, "sync", error=None)
        except Exception as caught:
            tell(case, "sync", **error(caught))


async def run_async() -> None:
    """Makes all calls at once, as such programs do."""
    client = AsyncAnthropic(max_retries=0)

    async def one(case: str) -> None:
        try:
            await client.messages.create(**parameters(case, "async"))
            tell(case, "async", error=None)
        except Exception as caught:
            tell(case, "async", **error(caught))

    await asyncio.gather(*[one(case) for case in CASES])


if __name__ == "__main__":
    run()
    asyncio.run(run_async())
