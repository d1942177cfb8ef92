"""APPEND, and reading logs: no gaps, no doubles, and nothing from a claim that is over."""

import pytest

from shared.events import EventId
from shared.job import JobState
from shared.store import redis_keys
from shared.store.log import REFUSED
from shared.store.runtime import Runtime
from tests.support.builders import a_text_delta, an_id
from tests.support.store import (
    append,
    claim_one,
    expire_leases,
    finish,
    job_of,
    listening,
    lose,
    names_in_log,
    roll_back_log,
    start,
    submit,
    succeed,
)

HEL, LO, BANG = a_text_delta("Hel"), a_text_delta("lo"), a_text_delta("!")


async def _ids(runtime: Runtime, job_id: str) -> list[EventId | None]:
    return [event.id for event in await runtime.log.read(job_id)]


async def test_appended_events_are_contiguous_with_the_claims(runtime: Runtime) -> None:
    """From ``started`` on; stored and published equally, with unchanged names and data."""
    claimed = await start(runtime)
    strange = ("content_block_delta", '{"text":"ünïcode | \\n \\u0000 -"}'.encode())
    async with listening(runtime, redis_keys.events(claimed.id)) as heard:
        assert await append(runtime, claimed, HEL, strange) == 3
        assert await append(runtime, claimed, BANG, seq=3) == 4
        published = await heard.events()
    stored = await runtime.log.read(claimed.id)
    assert stored[1:] == published
    assert [event.id for event in stored] == [EventId(claimed.epoch, seq) for seq in range(4)]
    assert [(event.name, event.data) for event in stored[1:]] == [HEL, strange, BANG]


async def test_one_append_is_one_message(runtime: Runtime) -> None:
    """There is one message per flush, not per event."""
    claimed = await start(runtime)
    async with listening(runtime, redis_keys.events(claimed.id)) as heard:
        await append(runtime, claimed, HEL, LO, BANG)
        assert len(await heard.all()) == 1


async def test_a_repeated_append_adds_nothing(runtime: Runtime) -> None:
    """Its first reply was lost: the same events are skipped, not doubled or published again."""
    claimed = await start(runtime)
    async with listening(runtime, redis_keys.events(claimed.id)) as heard:
        assert await append(runtime, claimed, HEL, LO) == 3
        assert await append(runtime, claimed, HEL, LO) == 3
        assert len(await heard.all()) == 1
    assert await _ids(runtime, claimed.id) == [EventId(claimed.epoch, seq) for seq in range(3)]


async def test_an_append_that_overlaps_adds_only_what_is_new(runtime: Runtime) -> None:
    """A part of the flush was there already."""
    claimed = await start(runtime)
    await append(runtime, claimed, HEL)
    async with listening(runtime, redis_keys.events(claimed.id)) as heard:
        assert await append(runtime, claimed, HEL, LO, BANG) == 4
        (lo, bang) = await heard.events()
    assert [(lo.id, lo.name, lo.data), (bang.id, bang.name, bang.data)] == [
        (EventId(claimed.epoch, 2), *LO),
        (EventId(claimed.epoch, 3), *BANG),
    ]
    assert [(event.name, event.data) for event in (await runtime.log.read(claimed.id))[1:]] == [HEL, LO, BANG]


async def test_an_append_far_before_the_top_returns_the_next_seq(runtime: Runtime) -> None:
    """A late duplicate of an early flush gets the same reply as any other."""
    claimed = await start(runtime)
    await append(runtime, claimed, HEL, LO, BANG)
    assert await append(runtime, claimed, HEL) == 4


async def test_a_gap_is_refused_with_the_missing_seq(runtime: Runtime) -> None:
    """A rollback has cut the log: nothing is written until the tail was sent again from there."""
    claimed = await start(runtime)
    assert await append(runtime, claimed, HEL, LO, BANG) == 4
    await roll_back_log(runtime, claimed.id, keep=2)
    async with listening(runtime, redis_keys.events(claimed.id)) as heard:
        assert await append(runtime, claimed, a_text_delta("?"), seq=4) == 2
        assert await heard.all() == []
        assert await append(runtime, claimed, LO, BANG, a_text_delta("?"), seq=2) == 5
        assert len(await heard.events()) == 3
    assert await _ids(runtime, claimed.id) == [EventId(claimed.epoch, seq) for seq in range(5)]


async def test_nothing_to_append_changes_nothing(runtime: Runtime) -> None:
    """It returns the next seq."""
    claimed = await start(runtime)
    assert await append(runtime, claimed, seq=1) == 1
    assert await append(runtime, claimed, seq=0) == 1
    assert await append(runtime, claimed, seq=7) == 1
    assert await names_in_log(runtime, claimed.id) == ["started"]


async def test_an_expired_lease_alone_refuses_nothing(runtime: Runtime) -> None:
    """The fence is the claim: until another worker has the job, its worker may go on."""
    claimed = await start(runtime)
    await expire_leases(runtime, claimed.id)
    assert await append(runtime, claimed, HEL) == 2


@pytest.mark.parametrize("how", ["cancelled", "ended", "reaped", "released", "claimed again", "erased", "unknown"])
async def test_an_append_of_a_claim_that_is_over_is_refused(runtime: Runtime, how: str) -> None:
    """Nothing is written or published, even if it repeats events that the log has."""
    claimed = await start(runtime)
    await append(runtime, claimed, HEL)
    if how == "cancelled":
        await runtime.jobs.cancel(claimed.id, claimed.tenant)
    elif how in {"ended", "erased"}:
        await finish(runtime, claimed, seq=2)
        if how == "erased":
            await runtime.jobs.erase(claimed.id, claimed.tenant)
    elif how == "released":
        await runtime.queue.release(claimed, reason="drained")
    elif how == "unknown":
        claimed = claimed._replace(id=an_id())
    else:
        await lose(runtime, claimed)
        if how == "claimed again":
            await claim_one(runtime)
    before = await runtime.log.read(claimed.id)
    async with listening(runtime, redis_keys.events(claimed.id)) as heard:
        for seq in (0, 1, 2, 3):
            assert await append(runtime, claimed, LO, seq=seq) == REFUSED
        assert await heard.all() == []
    assert await runtime.log.read(claimed.id) == before


async def test_what_the_stream_refuses_is_not_published(runtime: Runtime) -> None:
    """A second fence: without a log there is no event, whatever the record says."""
    claimed = await start(runtime)
    await runtime._commands.call("DEL", redis_keys.log(claimed.id))
    async with listening(runtime, redis_keys.events(claimed.id)) as heard:
        assert await append(runtime, claimed, HEL, seq=0) == REFUSED
        assert await heard.all() == []
    assert not await runtime._commands.call("EXISTS", redis_keys.log(claimed.id))


async def test_a_claim_from_the_future_is_refused_too(runtime: Runtime) -> None:
    """Only the lease's own epoch may write: Redis may have lost a claim that a worker still has."""
    claimed = await start(runtime)
    ahead = claimed._replace(epoch=claimed.epoch + 1)
    assert await append(runtime, ahead, HEL) == REFUSED


async def test_an_attempt_inside_a_claim_is_written_to_the_record(runtime: Runtime) -> None:
    """With its first flush; other flushes do not change the numbers."""
    claimed = await start(runtime)
    await runtime.log.append(claimed.id, claimed.epoch, 1, [("retry", b"{}")], published=False, attempts=2, failures=1)
    await append(runtime, claimed, HEL, seq=2)
    assert (await job_of(runtime, claimed.id)).attempts == 2
    await lose(runtime, claimed)
    again = await claim_one(runtime)
    assert (again.attempt, again.failures) == (3, 1)


async def test_only_published_content_makes_the_next_attempt_reset(runtime: Runtime) -> None:
    """Our own events are not content."""
    claimed = await start(runtime)
    await append(runtime, claimed, ("retry", b"{}"), published=False)
    await lose(runtime, claimed)
    assert (await claim_one(runtime)).next_seq == 1


# Reading


async def test_a_log_can_be_read_from_any_id_in_portions(runtime: Runtime) -> None:
    """After an id, or from an id on."""
    claimed = await start(runtime)
    await append(runtime, claimed, *(a_text_delta(str(number)) for number in range(9)))
    everything = await runtime.log.read(claimed.id)
    assert len(everything) == 10
    assert await runtime.log.read(claimed.id, count=4) == everything[:4]
    assert await runtime.log.read(claimed.id, after=everything[3].id, count=4) == everything[4:8]
    assert await runtime.log.read(claimed.id, start=EventId(claimed.epoch, 8)) == everything[8:]
    assert await runtime.log.read(claimed.id, after=everything[-1].id) == []
    assert await runtime.log.read(an_id()) == []


async def test_a_probe_returns_the_reach_of_each_log(runtime: Runtime) -> None:
    """In one command, for jobs in every state."""
    ended = await succeed(runtime)
    running = await start(runtime)
    await append(runtime, running, HEL)
    waiting = await submit(runtime)
    end, run, wait, gone = await runtime.log.probe([ended.id, running.id, waiting.id, an_id()])
    assert end is not None
    assert run is not None
    assert wait is not None
    assert (end.newest_claim, end.end_id, end.top) == (
        EventId(ended.epoch, 0),
        EventId(ended.epoch, 1),
        EventId(ended.epoch, 1),
    )
    assert (run.newest_claim, run.end_id, run.top) == (EventId(running.epoch, 0), None, EventId(running.epoch, 1))
    assert (wait.newest_claim, wait.end_id, wait.top) == (None, None, None)
    assert gone is None
    assert await runtime.log.probe([]) == []
    assert (await job_of(runtime, ended.id)).state is JobState.SUCCEEDED


async def test_a_probe_still_knows_the_end_of_a_job_whose_log_is_gone(runtime: Runtime) -> None:
    """The record keeps the end as long as the result."""
    ended = await succeed(runtime)
    await runtime._commands.call("DEL", redis_keys.log(ended.id))
    (reach,) = await runtime.log.probe([ended.id])
    assert reach is not None
    assert (reach.end_id, reach.top) == (EventId(ended.epoch, 1), None)
