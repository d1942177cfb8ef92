"""Each official SDK reads a complete answer, in whatever shape the upstream sent it.

Each shape is requested twice, streamed and whole, through a real API and a real worker. No SDK raises, and its answer
equals what the simulator sent and what the job's result holds.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.official_sdk.conftest import Sdk, Seen
from tests.support.deployment import Deployment, a_deployment, a_simulator
from tests.support.follower import asking

pytestmark = pytest.mark.timeout(90)

BOTH: Final = (
    "plain=1",
    "odd=whole",
    "odd=gzip",
    "odd=deflate",
    "odd=empty-frames",
    "odd=nulls",
    "odd=wrong-members",
    "odd=text-numbers",
    "odd=float-numbers",
    "odd=index-gaps",
    "odd=usage-start",
    "odd=usage-every",
    "odd=usage-stop",
    "odd=usage-end",
    "odd=usage-never",
    "end=stop",
    "pause=20,ms=200,every-ms=20",
    "unknown-event=3 unknown-delta=2",
    "odd=empty-frames+nulls+gzip crlf=1 slice=7",
)
SHAPES: Final = {
    "messages": (*BOTH, "odd=done", "odd=no-content", "odd=text-in-start", "odd=no-content+index-gaps+text-in-start"),
    "chat": (
        *BOTH,
        "odd=message",
        "odd=parts",
        "odd=no-ids",
        "odd=empty-ids",
        "odd=one-index",
        "odd=no-ids+one-index",
        "odd=empty-ids+one-index",
        "odd=texts-only",
        "odd=usage-stop stall=stop",
    ),
}
"""By the API that the upstream speaks, the words of a prompt."""

THINKING: Final = "This is simulated thinking before the answer. "
TEXT_TOKENS: Final = 4
OUTPUT_TOKENS: Final = 7 + TEXT_TOKENS + 2 * 6
"""Of the thinking, the text and the inputs of two tools."""
WITHOUT_USAGE: Final = {"messages": ("usage-end", "usage-never"), "chat": ("usage-never", "end=stop")}
"""Where the upstream does not say it, or says it where nobody looks."""

REFUSALS: Final = {
    "fail=400,body=detail,message=too%20long": "too long",
    "fail=422,body=details,message=too%20long": "too long",
    "fail=400,body=text,message=too%20long": "too long",
    "fail=400,body=error,message=too%20long": "too long",
    "fail=400,body=message,message=too%20long": "too long",
    "fail=200,type=invalid_request_error,message=too%20long": "too long",
    "fail=302,location=https://login.example/": "redirect",
    "fail=200,body=html": "text/html",
}
"""What an SDK's error says of it."""
NOT_FINAL: Final = "fail=200,body=html"
"""A gateway's page may be gone at the next attempt."""


@pytest.fixture(scope="session")
def _two_upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with (
        a_simulator(Path(tmp_path_factory.mktemp("simulator"))) as url,
        a_deployment(
            url,
            OPENAI_BASE_URL=f"{url}/v1",
            OPENAI_API_KEY="sk-made-up",
            TOKENSPOOL_ROUTES='{"chat-*": {"provider": "openai"}}',
            TOKENSPOOL_UPSTREAM_RETRY_BASE_S="0.05",
        ) as deployment,
    ):
        yield deployment


@pytest.fixture
async def two_upstreams(_two_upstreams: Deployment) -> Deployment:
    """An API and a worker before a simulator that speaks both APIs."""
    await _two_upstreams.make_whole(apis=1, workers=1)
    return _two_upstreams


@dataclass(frozen=True)
class Case:
    """One shape, by one dialect, in one of the ways to ask."""

    dialect: str
    words: str
    mode: str
    nonce: str

    @property
    def name(self) -> str:
        return f"{self.dialect} {self.words}"

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the SDK's method."""
        asked = (
            f"nonce={self.nonce} tokens={TEXT_TOKENS} gap-ms=1 first-ms=1 blocks=thinking+text+tool+tool {self.words}"
        )
        texts = [{"type": "text", "text": "Two texts,"}, {"type": "text", "text": asked}]
        return {
            "model": f"{self.dialect}-{self.nonce}",  # of this case alone: what is wrong with one is not in another's way
            "max_tokens": 500,
            "system": [{"type": "text", "text": "Be short."}, {"type": "text", "text": "Be kind."}],
            "messages": [{"role": "user", "content": texts}],
        }


def _cases(sdk: Sdk) -> list[Case]:
    shapes = [(dialect, words) for dialect in SHAPES for words in (*SHAPES[dialect], *REFUSALS)]
    return [
        Case(dialect, words, mode, f"{sdk.run}-{number}-{mode}")
        for number, (dialect, words) in enumerate(shapes)
        for mode in ("stream", "whole")
    ]


async def test_each_sdk_reads_an_answer_of_any_shape(any_sdk: Sdk, two_upstreams: Deployment) -> None:
    """Text, thinking, both tools' inputs, the reason of the end and the usage, from one call and without an exception; of a
    refusal, why.
    """
    cases = _cases(any_sdk)
    asked: dict[str, dict[str, Any]] = {}
    for case in cases:
        asked.setdefault(case.name, {})[case.mode] = case.parameters
    seen = await any_sdk.sees("odd", two_upstreams.apis[0].url, CASES=json.dumps(asked))
    results = await _results(two_upstreams.apis[0].url, seen)
    calls = Counter([call.nonce for call in await two_upstreams.calls()])
    wrong = []
    for case in cases:
        line = seen[case.name, case.mode]
        is_refused = case.words in REFUSALS
        problem = _told_wrongly(line, case) if is_refused else _read_wrongly(line, case, results)
        if problem is None and calls[case.nonce] != 1 and case.words != NOT_FINAL:
            problem = f"{calls[case.nonce]} calls"
        if problem is not None:
            wrong.append(f"{case.name} ({case.mode}): {problem}")
    assert not wrong, "\n".join(wrong)


async def _results(url: str, seen: Seen) -> dict[str, Any]:
    """By the job's id, the message of its result."""

    async def result(job_id: str) -> Any:
        async with asking(url, f"/v1/jobs/{job_id}") as response:
            return json.loads(await response.read())["result"]["message"]

    ids = [line["job_id"] for line in seen.values() if "job_id" in line]
    return dict(zip(ids, await asyncio.gather(*map(result, ids)), strict=True))


def _told_wrongly(line: dict[str, Any], case: Case) -> str | None:
    return None if "error" in line and REFUSALS[case.words] in line["message"] else str(line)


def _read_wrongly(line: dict[str, Any], case: Case, results: dict[str, Any]) -> str | None:
    if "error" in line:
        return f"{line['error']}: {line['message']}"
    message = line["message"]
    said = "".join(f"{case.nonce}.1.{index} " for index in range(TEXT_TOKENS))
    tool = {"name": "simulated_tool", "input": {"simulated": True, "nonce": case.nonce, "call": 1}}
    expected = [{"thinking": THINKING}, {"text": said}, tool, tool]
    contents = {"the SDK's": message["content"], "the job's": results[line["job_id"]]["content"]}
    for whose, content in contents.items():
        if _needed(content) != expected:
            return f"{whose} content is {content}"
    ids = {block["id"] for block in message["content"] if block["type"] == "tool_use"}
    if len(ids) != 2 or not all(ids):
        return f"the tools' ids are {ids}"
    if line.get("said", said) != said:
        return f"the stream's text is {line['said']!r}"
    if message["stop_reason"] != "tool_use":
        return f"the stop reason is {message['stop_reason']!r}"
    tokens = message["usage"]["output_tokens"]
    is_counted = not any(name in case.words for name in WITHOUT_USAGE[case.dialect])
    if not isinstance(tokens, int) or (is_counted and tokens != OUTPUT_TOKENS):
        return f"the usage is {message['usage']}"
    return None


_NEEDED: Final = ("thinking", "text", "name", "input")


def _needed(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: block[name] for name in _NEEDED if name in block} for block in content]
