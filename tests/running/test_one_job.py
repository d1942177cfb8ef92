"""Runs one job, as a table: what the upstream does, what the log then holds, and how the job ends."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from shared.routes import ProviderName
from tests.running.crew import FAST, Crew
from tests.running.providers import HARMLESS, on_each_provider, pairs

TOLD = [
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
]
"""The events of a whole answer with one block."""
QUICK = {"content_idle_timeout_s": 0.1, "first_token_timeout_s": 0.5, "pinged_idle_timeout_s": 0.5}


@dataclass(frozen=True)
class Answer:
    """A whole answer, which is a success whatever its stop reason."""

    script: str = ""
    stop_reason: str = "end_turn"
    names: list[str] = field(default_factory=lambda: TOLD)
    max_tokens: int = 1000


ANSWERS = {
    "text": Answer(),
    "tool use": Answer("blocks=tool", "tool_use"),
    "thinking": Answer("blocks=thinking+text", names=[*TOLD[:4], *TOLD[1:]]),
    "citations": Answer("blocks=citations"),
    "max_tokens": Answer(stop_reason="max_tokens", max_tokens=3),
    "refusal": Answer("stop=refusal", "refusal"),
    "pause_turn": Answer("stop=pause_turn", "pause_turn"),
    "lines": Answer("text=lines"),
    "emoji, split inside a character": Answer("text=emoji split-utf8=1"),
    "emoji, byte by byte": Answer("text=emoji slice=1"),
    "what looks like events": Answer("text=sse crlf=1 slice=5"),
    "what looks like the end": Answer("text=done"),
    "control characters": Answer("text=control"),
    "slow head": Answer("slow-head=50"),
    "a frame of no field": Answer("garbage=3"),
    "unknown events": Answer("unknown-event=3", names=[*TOLD[:3], "simulated_event", *TOLD[2:]]),
    "unknown deltas": Answer("unknown-delta=3"),
    "a token of 3 MB": Answer("big-line=2,bytes=3000000"),
    "an error page before": Answer("fail=500x1,body=html"),
}


OTHERWISE_IN_CHAT = {
    "pause_turn": Answer("stop=pause_turn", "end_turn"),  # chat completions have no such finish_reason
    "unknown events": Answer("unknown-event=3"),  # they become chunks without a choice
}
"""What the same script becomes in chat completions."""


@on_each_provider
@pytest.mark.parametrize("name", ANSWERS)
async def test_a_whole_answer_is_a_success(crew: Crew, name: str) -> None:
    answer = ANSWERS[name]
    if crew.provider is ProviderName.OPENAI:
        answer = OTHERWISE_IN_CHAT.get(name, answer)
    await crew.worker()
    job_id = await crew.submit(answer.script, max_tokens=answer.max_tokens)
    job = await crew.ended(job_id)
    assert job.state == "succeeded"
    assert job.result is not None
    assert msgspec.json.decode(bytes(job.result))["stop_reason"] == answer.stop_reason
    names = [name for name in await crew.names(job_id) if name != "retry"]
    assert names == ["started", *answer.names, "succeeded"]
    assert job.usage is not None
    assert job.usage.output_tokens == crew.calls(job_id)[-1].output_tokens
    assert job.usage.input_tokens == crew.calls(job_id)[-1].input_tokens > 0


@pytest.mark.parametrize("provider", [ProviderName.OPENAI])
async def test_a_chat_answer_becomes_a_message(crew: Crew) -> None:
    await crew.worker()
    job = await crew.ended(await crew.submit("blocks=thinking+text+citations+tool+tool cached=30 tokens=20"))
    assert job.result is not None
    message = msgspec.json.decode(bytes(job.result))["message"]
    assert message["model"] == FAST
    assert message["id"].startswith("chatcmpl-")
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert message["content"][0]["thinking"]
    assert [block["input"]["simulated"] for block in message["content"][2:]] == [True, True]
    assert message["stop_reason"] == "tool_use"
    assert job.usage is not None
    assert job.usage.cache_read_input_tokens == 30
    assert job.usage.output_tokens == crew.calls(crew.jobs[0])[-1].output_tokens


@dataclass(frozen=True)
class Fault:
    """A fault of one call."""

    script: str
    code: str
    """The reason in `retry`, and the job's error if it happens on every attempt."""
    status: int | None = None
    shows_something: bool = True
    """Whether followers saw an event of the upstream before the fault."""
    settings: dict[str, Any] = field(default_factory=dict)


FAULTS = {
    "429": Fault("fail=429", "upstream_rate_limited", 429, shows_something=False),
    "529": Fault("fail=529", "upstream_overloaded", 529, shows_something=False),
    "500": Fault("fail=500", "upstream_error", 500, shows_something=False),
    "503 of a proxy": Fault("fail=503,body=html", "upstream_error", 503, shows_something=False),
    "529 without a body": Fault("fail=529,body=empty", "upstream_overloaded", 529, shows_something=False),
    "a proxy's page with status 200": Fault("fail=200,body=html", "upstream_truncated", shows_something=False),
    "a clean end before the first token": Fault("end=0", "upstream_truncated"),
    "a clean end after three": Fault("end=3", "upstream_truncated"),
    "a clean end before message_stop": Fault("end=stop", "upstream_truncated"),
    "a clean end without an answer": Fault("end=head", "upstream_error", shows_something=False),
    "a close": Fault("fin=3", "upstream_truncated"),
    "a reset": Fault("rst=3", "upstream_truncated"),
    "a reset before the head": Fault("rst=head", "upstream_error", shows_something=False),
    "bytes that are not HTTP": Fault("bad-chunk=3", "upstream_truncated"),
    "an overloaded_error inside": Fault("error=3,type=overloaded_error", "upstream_overloaded"),
    "an api_error inside": Fault("error=1", "upstream_error"),
    "a timeout_error inside": Fault("error=3,type=timeout_error", "upstream_error"),
    "an error of tomorrow inside": Fault("error=3,type=an_error_of_tomorrow", "upstream_error"),
    "bad JSON": Fault("bad-json=3", "upstream_truncated"),
    "a delta without an index": Fault("no-index=3", "upstream_truncated"),
    "no message_start": Fault("no-start=1", "upstream_truncated", shows_something=False),
    "no stop reason": Fault("no-stop-reason=1", "upstream_truncated"),
    "half a surrogate pair": Fault("text=surrogate", "upstream_truncated"),
    "two beginnings": Fault("restart=3", "upstream_truncated"),
    "silence before the head": Fault("stall=head", "upstream_error", shows_something=False, settings=QUICK),
    "silence before the first token": Fault("stall=0", "upstream_error", settings=QUICK),
    "silence after three": Fault("stall=3", "upstream_error", settings=QUICK),
    "only pings before the first token": Fault("pings=0,every-ms=10", "upstream_error", settings=QUICK),
    "only pings after three": Fault("pings=3,every-ms=10", "upstream_error", settings=QUICK),
}

ONCE = {name: fault for name, fault in FAULTS.items() if fault.script != "text=surrogate"}  # `text=` takes no `x1`


@pairs(ONCE)
async def test_a_passing_fault_is_reported_and_retried(crew: Crew, fault_name: str) -> None:
    """`reset` follows `retry` only if followers had seen content, which is then not part of the answer."""
    fault = FAULTS[fault_name]
    await crew.worker(**fault.settings)
    value, _, options = fault.script.partition(",")
    job_id = await crew.submit(f"{value}x1{',' if options else ''}{options} gap-ms=15")
    job = await crew.ended(job_id)
    assert job.state == "succeeded"
    assert job.attempts == 2
    assert [call.status for call in crew.calls(job_id)][1:] == [200]
    (started, (retry_name, retry), *resets, succeeded) = await crew.ours(job_id)
    assert (started, succeeded) == (("started", {"attempt": 1}), ("succeeded", {"status": "succeeded"}))
    assert (retry_name, retry["attempt"], retry["reason"]) == ("retry", 2, fault.code)
    assert 0 <= retry["delay_ms"] <= 20
    reset = ("reset", {"attempt": 2, "reason": "upstream_failed"})
    assert resets == ([reset] if fault.shows_something else [])
    assert (await crew.names(job_id))[-7:] == [*TOLD, "succeeded"]


@pytest.mark.parametrize(("provider", "fault_name"), HARMLESS)
async def test_what_leaves_no_doubt_about_the_answer_is_no_failure(crew: Crew, fault_name: str) -> None:
    await crew.worker()
    job_id = await crew.submit(FAULTS[fault_name].script)
    job = await crew.ended(job_id)
    assert (job.state, job.attempts) == ("succeeded", 1)
    assert await crew.names(job_id) == ["started", *TOLD, "succeeded"]


@pairs(FAULTS)
async def test_a_fault_on_every_attempt_fails_the_job(crew: Crew, fault_name: str) -> None:
    fault = FAULTS[fault_name]
    await crew.worker(**fault.settings)
    job_id = await crew.submit(fault.script, max_attempts=2)
    job = await crew.ended(job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.retryable, job.error.upstream_status) == (fault.code, True, fault.status)
    assert job.attempts == 2
    assert len(crew.calls(job_id)) == 2
    assert [name for name, _ in await crew.ours(job_id) if name != "reset"] == ["started", "retry", "failed"]


REFUSALS = {
    # script: (code, status)
    "fail=400": ("upstream_rejected", 400),
    "fail=401": ("upstream_auth", 401),
    "fail=403": ("upstream_auth", 403),
    "fail=404": ("upstream_rejected", 404),
    "fail=413": ("upstream_rejected", 413),
    "fail=400,body=html": ("upstream_rejected", 400),
    "fail=429,type=billing_error": ("upstream_rejected", 429),
    "error=3,type=invalid_request_error": ("upstream_rejected", None),
}


REFUSALS_OF_OPENAI = {
    "fail=429,type=insufficient_quota": ("upstream_rejected", 429),  # waiting does not help
    "fail=400,code=context_length_exceeded": ("upstream_rejected", 400),
    "fail=401,code=invalid_api_key": ("upstream_auth", 401),  # its type is invalid_request_error
    "error=3,type=insufficient_quota": ("upstream_rejected", None),
}


@pytest.mark.parametrize(
    ("provider", "script", "expected"),
    [
        *((provider, *row) for provider in ProviderName for row in REFUSALS.items()),
        *((ProviderName.OPENAI, *row) for row in REFUSALS_OF_OPENAI.items()),
    ],
)
async def test_a_refusal_is_final(crew: Crew, script: str, expected: tuple[str, int | None]) -> None:
    await crew.worker()
    job_id = await crew.submit(script, max_attempts=10)
    job = await crew.ended(job_id)
    assert job.error is not None
    assert (job.state, job.error.code, job.error.upstream_status) == ("failed", *expected)
    assert not job.error.retryable
    assert len(crew.calls(job_id)) == 1


@on_each_provider
async def test_the_upstreams_own_words_are_in_the_error(crew: Crew) -> None:
    await crew.worker()
    job = await crew.ended(await crew.submit("fail=400,message=max_tokens%20is%20too%20large"))
    assert job.error is not None
    assert "invalid_request_error" in job.error.message


@on_each_provider
@pytest.mark.parametrize("script", ["stall=head", "stall=3", "pings=3,every-ms=10", "gap-ms=50 tokens=1000"])
async def test_the_jobs_own_time_ends_it_whatever_the_upstream_does(crew: Crew, script: str) -> None:
    await crew.worker()
    job_id = await crew.submit(script, timeout_s=1, max_attempts=10)
    job = await crew.ended(job_id)
    assert job.error is not None
    assert (job.state, job.error.code, job.attempts) == ("failed", "timeout", 1)
    assert job.started_ms is not None
    assert job.ended_ms is not None
    assert 1000 <= job.ended_ms - job.started_ms < 3000
    (call,) = crew.calls(job_id)
    await crew.simulator.until(lambda: call.ended == "client_closed")


@on_each_provider
async def test_the_jobs_own_time_runs_over_all_attempts(crew: Crew) -> None:
    await crew.worker(content_idle_timeout_s=0.3)
    job_id = await crew.submit("stall=3", timeout_s=1, max_attempts=10)
    job = await crew.ended(job_id)
    assert job.error is not None
    assert job.error.code == "timeout"
    assert 2 <= job.attempts <= 4


@on_each_provider
async def test_a_silent_upstream_is_left_at_the_idle_limit_and_not_before(crew: Crew) -> None:
    """The tokens come 60 ms apart, for ten times as long as the idle limit."""
    await crew.worker(content_idle_timeout_s=0.2, first_token_timeout_s=0.2)
    job_id = await crew.submit("tokens=30 gap-ms=60")
    assert (await crew.ended(job_id)).state == "succeeded"
    assert len(crew.calls(job_id)) == 1


@on_each_provider
@pytest.mark.parametrize("script", ["stall=stop", "pings=stop,every-ms=50"])
async def test_no_timer_throws_a_whole_answer_away(crew: Crew, script: str) -> None:
    """The server holds the connection open after the reason of the end, for longer than each limit allows."""
    await crew.worker(content_idle_timeout_s=0.2)
    job_id = await crew.submit(script, timeout_s=1)
    job = await crew.ended(job_id)
    assert (job.state, job.attempts) == ("succeeded", 1), job.error


@on_each_provider
@pytest.mark.parametrize("script", ["pings=0,every-ms=50", "pings=3,every-ms=50"])
async def test_an_upstream_that_pings_lives(crew: Crew, script: str) -> None:
    """It may ping for five times the idle limit and longer: it thinks, or writes a tool's long input."""
    await crew.worker(content_idle_timeout_s=0.2, first_token_timeout_s=0.2)
    job_id = await crew.submit(script, timeout_s=1, max_attempts=10)
    job = await crew.ended(job_id)
    assert job.error is not None
    assert (job.error.code, job.attempts) == ("timeout", 1)


@on_each_provider
@pytest.mark.parametrize("timer", ["first_token_timeout_s", "content_idle_timeout_s"])
async def test_a_limit_of_the_jobs_own_holds_whatever_pings_come(crew: Crew, timer: str) -> None:
    """Such a failure does not count against the upstream."""
    hand = await crew.worker()
    place = 0 if timer == "first_token_timeout_s" else 3
    own: dict[str, Any] = {timer: 1}
    job_ids = [await crew.submit(f"pings={place},every-ms=50", max_attempts=1, **own) for _ in range(12)]
    for job in await crew.all_ended(job_ids):
        assert job.error is not None
        assert (job.error.code, job.attempts) == ("upstream_error", 1)
        assert job.error.message == "The LLM failed: no content came for 1 s, the job's own limit."
    assert hand.log.named("circuit_opened") == []
    assert (await crew.ended(await crew.submit("tokens=3"))).state == "succeeded"
