"""Leases: RENEW and REAP. A worker that is silent for a lease is dead and its jobs move, unless Redis was away."""

import pytest

from shared.job import JobState
from shared.store import redis_keys
from shared.store.queue import ALONE_TAKEOVERS, FATAL_TAKEOVERS, SUSPECT_TAKEOVERS, Claim, Finished
from shared.store.runtime import Runtime
from tests.conftest import StartRuntime
from tests.support.builders import a_text_delta, an_id
from tests.support.redis_servers import on_real_redis
from tests.support.store import (
    age_alive,
    append,
    assert_consistent,
    claim,
    claim_one,
    confirm,
    expire_leases,
    finish,
    job_of,
    listening,
    lose,
    names_in_log,
    now_ms,
    start,
    start_earlier,
    state_of,
    submit,
    submit_many,
    ttl_ms,
)


async def _lease_end_ms(runtime: Runtime, claimed: Claim) -> int:
    return int(float(await runtime._commands.call("ZSCORE", redis_keys.plain("running"), claimed.id)))


async def test_a_claim_holds_a_lease_and_renew_extends_it(start_runtime: StartRuntime) -> None:
    """By the setting, from Redis's current time."""
    runtime = await start_runtime(lease_s=20)
    claimed = await start(runtime)
    assert await _lease_end_ms(runtime, claimed) == claimed.claimed_ms + 20_000
    await expire_leases(runtime, claimed.id)
    before_ms = await now_ms(runtime)
    await confirm(runtime, claimed)
    assert before_ms + 20_000 <= await _lease_end_ms(runtime, claimed) <= await now_ms(runtime) + 20_000


async def test_one_renew_serves_all_of_a_workers_jobs(runtime: Runtime) -> None:
    """It returns those that are no longer its own: taken over, ended, cancelled, unknown."""
    await submit_many(runtime, 5)
    kept, taken, ended, cancelled, other = await claim(runtime, 5)
    await lose(runtime, taken)
    await finish(runtime, ended)
    await runtime.jobs.cancel(cancelled.id, cancelled.tenant)
    unknown = an_id()
    lost = await runtime.queue.renew(
        [(found.id, found.epoch) for found in (kept, taken, ended, cancelled, other)] + [(unknown, 1)]
    )
    assert lost == [taken.id, ended.id, cancelled.id, unknown]
    assert await runtime.queue.renew([]) == []


async def test_only_the_newest_claim_can_renew(runtime: Runtime) -> None:
    """The epoch is the fence, even for a worker that has claimed the job again."""
    old = await start(runtime)
    await lose(runtime, old)
    new = await claim_one(runtime)
    end_ms = await _lease_end_ms(runtime, new)
    assert await runtime.queue.renew([(old.id, old.epoch)]) == [old.id]
    assert await _lease_end_ms(runtime, new) == end_ms


async def test_an_expired_lease_that_nobody_reaped_is_renewed_like_any_other(runtime: Runtime) -> None:
    """A late renewal is better than a second run."""
    claimed = await start(runtime)
    await expire_leases(runtime, claimed.id)
    await confirm(runtime, claimed)
    assert (await runtime.queue.reap()).back == []
    assert (await finish(runtime, claimed)).outcome is Finished.ENDED


async def test_a_job_of_a_dead_worker_is_back_at_its_old_place(runtime: Runtime) -> None:
    """Before all later jobs."""
    first, second, third = await submit_many(runtime, 3)
    claimed = await claim_one(runtime)
    assert (await lose(runtime, claimed)).back == [first]
    assert await state_of(runtime, first) is JobState.QUEUED
    await assert_consistent(runtime, [first, second, third])
    again = await claim(runtime, 3)
    assert [found.id for found in again] == [first, second, third]
    assert (again[0].attempt, again[0].takeovers) == (2, 1)


async def test_a_reaped_job_may_wait_until_its_timeout(runtime: Runtime) -> None:
    """Counted from its first start; a job whose time is over ends as ``failed``."""
    claimed = await start(runtime, timeout_s=77)
    started_ms = await start_earlier(runtime, claimed, by_ms=20_000)
    await lose(runtime, claimed)
    deadline = await runtime._commands.call("ZSCORE", redis_keys.plain("waiting"), claimed.id)
    assert int(float(deadline)) == started_ms + 77_000


async def test_the_next_run_says_that_the_worker_was_lost(runtime: Runtime) -> None:
    """If content was published."""
    claimed = await start(runtime)
    await append(runtime, claimed, a_text_delta("Hel"))
    await lose(runtime, claimed)
    await claim_one(runtime)
    events = await runtime.log.read(claimed.id)
    assert [event.name for event in events] == ["started", "content_block_delta", "started", "reset"]
    assert b'"worker_lost"' in events[-1].data


async def test_the_reason_of_a_reset_is_that_of_the_last_loss(runtime: Runtime) -> None:
    """An earlier release without published content does not count."""
    claimed = await start(runtime)
    assert await runtime.queue.release(claimed, reason="drained")
    claimed = await claim_one(runtime)
    await append(runtime, claimed, a_text_delta("Hel"))
    await lose(runtime, claimed)
    await claim_one(runtime)
    assert b'"worker_lost"' in (await runtime.log.read(claimed.id))[-1].data


async def test_a_living_lease_is_left_alone(runtime: Runtime) -> None:
    """The reaper gets the time of the next expiry."""
    await submit_many(runtime, 2)
    dead, living = await claim(runtime, 2)
    await expire_leases(runtime, dead.id)
    reaped = await runtime.queue.reap()
    assert reaped.back == [dead.id]
    assert reaped.next_expiry_s == pytest.approx(8, abs=2)
    assert await state_of(runtime, living.id) is JobState.RUNNING


async def test_with_nothing_running_there_is_no_next_expiry(runtime: Runtime) -> None:
    """The reaper then runs at its own tick."""
    assert (await runtime.queue.reap()).next_expiry_s is None


@on_real_redis
async def test_a_mass_death_is_reaped_in_portions(runtime: Runtime) -> None:
    """A hundred at a time; the reaper must run again at once."""
    ids = await submit_many(runtime, 150)
    await claim(runtime, 150)
    await expire_leases(runtime, *ids)
    first = await runtime.queue.reap()
    assert (len(first.back), first.next_expiry_s) == (100, 0)
    second = await runtime.queue.reap()
    assert (len(second.back), second.next_expiry_s) == (50, None)
    await assert_consistent(runtime, ids)


async def test_a_takeover_wakes_a_hungry_worker(runtime: Runtime) -> None:
    """The reaper may be full itself."""
    claimed = await start(runtime)
    assert await claim(runtime) == []
    async with listening(runtime, redis_keys.plain("wake")) as heard:
        await lose(runtime, claimed)
        assert await heard.all() == [b""]


# The dead worker's writes


async def test_every_write_of_a_dead_worker_is_refused(runtime: Runtime) -> None:
    """Before and after another worker has the job: nothing is written or published."""
    old = await start(runtime)
    await lose(runtime, old)
    for _ in ("waiting again", "running elsewhere"):
        events = await runtime.log.read(old.id)
        async with listening(runtime, redis_keys.events(old.id)) as heard:
            assert await append(runtime, old, a_text_delta("zombie")) == -1
            assert (await finish(runtime, old)).outcome is Finished.REFUSED
            assert not await runtime.queue.release(old, reason="drained")
            assert await runtime.queue.renew([(old.id, old.epoch)]) == [old.id]
            assert await heard.all() == []
        assert await runtime.log.read(old.id) == events
        await assert_consistent(runtime, [old.id])
        await claim(runtime)
    assert await state_of(runtime, old.id) is JobState.RUNNING


# Poison


async def test_the_third_counted_takeover_fails_the_job(runtime: Runtime) -> None:
    """The job may be what kills its workers: ``worker_lost``, with its terminal event."""
    submission = await submit(runtime)
    for takeover in range(1, FATAL_TAKEOVERS + 1):
        claimed = await claim_one(runtime)
        reaped = await lose(runtime, claimed)
        assert (reaped.back, reaped.failed) == (
            ([submission.id], []) if takeover < FATAL_TAKEOVERS else ([], [submission.id])
        )
    job = await job_of(runtime, submission.id)
    assert (job.state, job.attempts) == (JobState.FAILED, 3)
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == ("worker_lost", False)
    events = await runtime.log.read(submission.id)
    assert [event.name for event in events] == ["started", "started", "started", "failed"]
    assert str(events[-1].id) == job.end_id
    assert await ttl_ms(runtime, redis_keys.job(submission.id)) is not None
    assert await claim(runtime) == []
    await assert_consistent(runtime, [submission.id])


async def test_a_takeover_before_the_start_was_confirmed_is_not_held_against_the_job(runtime: Runtime) -> None:
    """The worker died for another reason: neither a takeover nor an attempt is counted."""
    submission = await submit(runtime)
    for _ in range(FATAL_TAKEOVERS + 2):
        claimed = await claim_one(runtime)
        assert (claimed.attempt, claimed.takeovers) == (1, 0)
        assert (await lose(runtime, claimed, confirmed=False)).back == [submission.id]
    assert (await job_of(runtime, submission.id)).attempts == 0


async def test_each_claim_confirms_for_itself(runtime: Runtime) -> None:
    """A confirmation of an earlier claim does not count."""
    claimed = await start(runtime)
    await lose(runtime, claimed)
    await lose(runtime, await claim_one(runtime), confirmed=False)
    assert (await claim_one(runtime)).takeovers == 1


async def test_a_released_job_does_not_count_as_taken_over(runtime: Runtime) -> None:
    """A deploy is not a worker's death."""
    await submit(runtime)
    for _ in range(FATAL_TAKEOVERS + 1):
        claimed = await claim_one(runtime)
        await confirm(runtime, claimed)
        assert await runtime.queue.release(claimed, reason="drained")
    assert (await claim_one(runtime)).takeovers == 0


# A silence of all workers


@pytest.mark.parametrize("first_call", ["claim", "renew", "reap"])
async def test_after_a_silence_of_all_workers_nothing_is_reaped_for_one_more_lease(
    runtime: Runtime, first_call: str
) -> None:
    """Redis was away, not the workers: the first call updates the stamp, and all have one lease to renew."""
    claimed = await start(runtime)
    await age_alive(runtime, by_ms=5_000)
    await expire_leases(runtime, claimed.id)
    if first_call == "claim":
        await claim(runtime)
    elif first_call == "renew":
        await runtime.queue.renew([])
    reaped = await runtime.queue.reap()
    assert (reaped.back, reaped.failed) == ([], [])
    assert reaped.next_expiry_s == pytest.approx(8, abs=2)
    assert (await runtime.queue.reap()).back == []
    assert 0 < (await ttl_ms(runtime, redis_keys.plain("grace")) or 0) <= 8_000

    await runtime._commands.call("DEL", redis_keys.plain("grace"))  # the lease has passed
    assert (await runtime.queue.reap()).back == [claimed.id]


async def test_a_silence_of_less_than_half_a_lease_is_nothing(runtime: Runtime) -> None:
    """One worker's death among others is noticed at once."""
    claimed = await start(runtime)
    await age_alive(runtime, by_ms=3_000)
    await expire_leases(runtime, claimed.id)
    assert (await runtime.queue.reap()).back == [claimed.id]


async def test_every_call_of_a_worker_stamps(runtime: Runtime) -> None:
    """CLAIM, RENEW and REAP each update the stamp, which shows that a worker lives."""
    for call in (lambda: claim(runtime), lambda: runtime.queue.renew([]), runtime.queue.reap):
        await runtime._commands.call("DEL", redis_keys.plain("alive"))
        before_ms = await now_ms(runtime)
        await call()
        assert int(await runtime._commands.call("GET", redis_keys.plain("alive"))) >= before_ms
        assert 0 < (await ttl_ms(runtime, redis_keys.plain("alive")) or 0) <= 3_600_000


async def test_a_stamp_that_aged_away_counts_as_silence(runtime: Runtime) -> None:
    """After more than an hour without Redis the stamp has expired, but no worker counts as dead."""
    claimed = await start(runtime)
    await runtime._commands.call("DEL", redis_keys.plain("alive"))
    await expire_leases(runtime, claimed.id)
    assert (await runtime.queue.reap()).back == []
    await confirm(runtime, claimed)


async def test_an_idle_system_needs_no_grace(runtime: Runtime) -> None:
    """Without leases there is nothing to protect: a job started after a quiet night is reaped as usual."""
    await claim(runtime)
    await age_alive(runtime, by_ms=3_000_000)
    claimed = await start(runtime)
    await expire_leases(runtime, claimed.id)
    assert (await runtime.queue.reap()).back == [claimed.id]
    assert "reset" not in await names_in_log(runtime, claimed.id)


async def _die_together(runtime: Runtime, claims: list[Claim]) -> tuple[list[str], list[str]]:
    for claimed in claims:
        await confirm(runtime, claimed)
    await expire_leases(runtime, *(claimed.id for claimed in claims))
    reaped = await runtime.queue.reap()
    return reaped.back, reaped.failed


async def test_of_suspects_that_die_together_none_is_blamed(runtime: Runtime) -> None:
    """One of them may be what kills its workers. It is found when it dies apart from the others, which then succeed."""
    poison, *innocents = await submit_many(runtime, 4)
    for _ in range(SUSPECT_TAKEOVERS + 1):
        assert (await _die_together(runtime, await claim(runtime, 4)))[1] == []
    (alone,) = await claim(runtime, 4, worker="worker-2")
    assert (alone.id, alone.takeovers) == (poison, ALONE_TAKEOVERS)
    assert await _die_together(runtime, [alone]) == ([], [poison])
    for number, innocent in enumerate(innocents):
        (found,) = await claim(runtime, 4, worker=f"worker-{number + 3}")
        assert found.id == innocent
        await finish(runtime, found)


async def test_the_most_suspect_of_a_dead_workers_jobs_is_blamed(runtime: Runtime) -> None:
    """Suspects that lost fewer workers are not; also if they are reaped later."""
    first, second = await submit_many(runtime, 2)
    for _ in range(SUSPECT_TAKEOVERS + 1):
        await _die_together(runtime, await claim(runtime, 2))
    bystander = await submit(runtime)
    await runtime._commands.call("HSET", redis_keys.job(bystander.id), "takeovers", SUSPECT_TAKEOVERS)
    one, other = await claim(runtime, 3, worker="worker-2")
    assert {one.id, other.id} == {first, bystander.id}
    assert (await _die_together(runtime, [one]))[1] == [first]
    assert await _die_together(runtime, [other]) == ([bystander.id], [])
    assert await state_of(runtime, second) is JobState.QUEUED


async def test_a_suspect_that_ended_is_no_company(runtime: Runtime) -> None:
    """The one that still ran when the worker died is to blame."""
    ids = await submit_many(runtime, 2)
    for job_id in ids:
        await runtime._commands.call("HSET", redis_keys.job(job_id), "takeovers", SUSPECT_TAKEOVERS)
    ended, poison = await claim(runtime, 2)
    await finish(runtime, ended)
    assert await _die_together(runtime, [poison]) == ([], [poison.id])
