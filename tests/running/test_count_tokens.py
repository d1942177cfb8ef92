"""A count of tokens is a job without a log, a permit or a price."""

from typing import Any

import msgspec
import pytest

from shared.job import Job, JobKind, JobState
from shared.routes import ProviderName
from tests.running.crew import Crew
from tests.running.ledger import rows_of
from tests.running.test_retries import come_due, until_deferred
from tests.running.test_upstream_connection import A_REQUEST, a_provider, an_upstream, whole
from worker.outcome import UpstreamError


async def counted(crew: Crew, prompt: str = "", **members: Any) -> str:
    return await crew.submit(prompt, kind=JobKind.COUNT_TOKENS, **members)


def count_of(job: Job) -> int:
    assert job.result is not None
    result = msgspec.json.decode(bytes(job.result))
    assert result.keys() == {"input_tokens"}
    count: int = result["input_tokens"]
    return count


async def test_a_count_is_the_upstreams_and_costs_nothing(crew: Crew) -> None:
    hand = await crew.worker()
    job_id = await counted(crew, "one two three")
    job = await crew.ended(job_id)
    (call,) = crew.calls(job_id)
    assert (call.endpoint, call.sdk_retry, call.beta) == ("count_tokens", "0", None)
    assert count_of(job) == call.input_tokens > 0
    assert (job.state, job.usage, job.cost_usd, job.first_token_ms) == (JobState.SUCCEEDED, None, None, None)
    assert await rows_of(crew, job_id) == []
    assert await crew.events(job_id) == []
    assert [line["job_id"] for line in hand.log.named("job_succeeded")] == [job_id]


async def test_a_count_is_asked_again_until_its_attempts_are_spent(crew: Crew) -> None:
    await crew.worker()
    again, spent = await counted(crew, "fail=500x2"), await counted(crew, "fail=500")
    assert (await crew.ended(again)).state is JobState.SUCCEEDED
    assert len(crew.calls(again)) == 3
    job = await crew.ended(spent)
    assert (job.state, job.error and job.error.code) == (JobState.FAILED, "upstream_error")
    assert len(crew.calls(spent)) == 3
    assert await crew.events(again) == await crew.events(spent) == []


async def test_a_count_that_must_wait_long_gives_its_slot_away(crew: Crew) -> None:
    await crew.worker()
    job_id = await counted(crew, "fail=429x1,retry-after=30")
    await until_deferred(crew, job_id)
    await come_due(crew, job_id)
    assert (await crew.ended(job_id)).state is JobState.SUCCEEDED
    assert await crew.events(job_id) == []


async def test_what_is_refused_is_not_asked_again(crew: Crew) -> None:
    await crew.worker()
    job_id = await counted(crew, request=b'{"model":"sim-t6-g1-f1","messages":[],"surprise":1}')
    job = await crew.ended(job_id)
    assert job.error is not None
    assert (job.error.code, job.error.upstream_status) == ("upstream_rejected", 400)
    assert len(crew.simulator.calls) == 1


async def test_a_count_without_an_answer_is_ended_by_its_timers(crew: Crew) -> None:
    await crew.worker()
    silent = await counted(crew, "stall=head", first_token_timeout_s=1, max_attempts=1)
    job = await crew.ended(silent)
    assert (job.error and job.error.code) == "upstream_error"


async def test_the_callers_betas_go_with_both_kinds_of_call(crew: Crew) -> None:
    await crew.worker()
    for kind in JobKind:
        job_id = await crew.submit(kind=kind, anthropic_beta="context-1m-2025-08-07,other")
        assert (await crew.ended(job_id)).state is JobState.SUCCEEDED
        assert [call.beta for call in crew.calls(job_id)] == ["context-1m-2025-08-07,other"]


async def test_a_beta_that_no_header_can_hold_is_not_sent(crew: Crew) -> None:
    await crew.worker()
    job_id = await crew.submit(anthropic_beta="a\r\nx-api-key: b")
    assert (await crew.ended(job_id)).state is JobState.SUCCEEDED
    assert [call.beta for call in crew.calls(job_id)] == [None]


@pytest.mark.parametrize("provider", [ProviderName.OPENAI])
async def test_chat_completions_cannot_count(crew: Crew) -> None:
    await crew.worker()
    job_id = await counted(crew)
    job = await crew.ended(job_id)
    assert job.error is not None
    assert (job.error.code, job.error.upstream_status, job.error.retryable) == ("upstream_rejected", 404, False)
    assert "cannot count" in job.error.message
    assert crew.simulator.calls == []


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"input_tokens":-1}', b'{"input_tokens":"3"}', b"\xff", b"1" * 70_000]
)
async def test_what_is_no_count_is_garbled(body: bytes) -> None:
    name = ProviderName.ANTHROPIC
    async with an_upstream(whole("200 OK", body)) as upstream, a_provider(upstream, name) as asked:
        with pytest.raises(UpstreamError) as raised:
            await asked.count_tokens(A_REQUEST, model="m", connect_timeout_s=5)
        assert raised.value.failure.error.code == "upstream_truncated"
