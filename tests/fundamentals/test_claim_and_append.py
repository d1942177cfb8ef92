"""A worker claims a job, calls the LLM and appends the answer's events to the job's log."""

import msgspec

from shared.events import text_of
from tests.running.crew import FAST, Crew
from tests.running.providers import on_each_provider


@on_each_provider
async def test_a_claimed_job_makes_one_call_and_records_its_times(crew: Crew) -> None:
    """The log begins with `started` and ends with `succeeded`."""
    await crew.worker()
    job_id = await crew.submit("first-ms=30")
    job = await crew.ended(job_id)
    assert job.started_ms is not None
    assert job.first_token_ms is not None
    assert job.ended_ms is not None
    assert job.created_ms <= job.started_ms <= job.first_token_ms - 25 <= job.ended_ms
    assert job.attempts == 1
    assert [call.stream for call in crew.calls(job_id)] == [True]
    assert [call.sdk_retry for call in crew.calls(job_id)] == ["0"]
    assert await crew.ours(job_id) == [("started", {"attempt": 1}), ("succeeded", {"status": "succeeded"})]


async def test_the_result_is_the_upstreams_own_message(crew: Crew) -> None:
    """The worker rebuilds it, with all its blocks, from the events that it appended."""
    await crew.worker()
    job = await crew.ended(await crew.submit("blocks=thinking+text+citations+tool"))
    assert job.result is not None
    message = msgspec.json.decode(bytes(job.result))["message"]
    assert message["model"] == FAST
    assert message["id"].startswith("msg_simulated_")
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "text", "tool_use"]
    assert message["content"][0]["thinking"]
    assert message["content"][2]["citations"]
    assert message["content"][3]["input"]["simulated"] is True


async def test_every_token_is_in_the_log_in_a_few_dozen_events_a_second(crew: Crew) -> None:
    """Tokens that arrive together are appended together: every token is in the log, in far fewer events."""
    await crew.worker()
    job = await crew.ended(await crew.submit("tokens=300 gap-ms=2"))
    deltas = [text for event in await crew.events(job.id) if (text := text_of(event))]
    assert len("".join(deltas).split()) == 300
    assert len(deltas) < 60
