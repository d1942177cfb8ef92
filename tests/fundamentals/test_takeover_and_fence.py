"""A worker dies or stalls: another one takes over its jobs, and the fence refuses what the first one still writes."""

from shared.errors import JobError
from shared.job import JobState, Step
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from tests.running.crew import Crew
from tests.stream.conftest import Follow
from tests.support.author import Author
from tests.support.follower import following
from tests.support.store import expire_leases, lose
from tests.support.story import assert_saw
from tests.support.wait import wait_until

LEASE_S = 0.6
LONG = "tokens=150 gap-ms=20"
"""Longer than a lease."""


async def test_a_killed_workers_jobs_run_elsewhere(crew: Crew) -> None:
    first = await crew.worker(lease_s=LEASE_S)
    job_ids = [await crew.submit(LONG) for _ in range(5)]
    for job_id in job_ids:
        await crew.begun(job_id)
    second = await crew.worker(lease_s=LEASE_S)
    await first.killed()
    for job in await crew.all_ended(job_ids):
        assert (job.state, job.attempts) == (JobState.SUCCEEDED, 2)
        assert await crew.ours(job.id) == [
            ("started", {"attempt": 1}),
            ("started", {"attempt": 2}),
            ("reset", {"attempt": 2, "reason": "worker_lost"}),
            ("succeeded", {"status": "succeeded"}),
        ]
        assert [call.ended for call in crew.calls(job.id)] == ["client_closed", "completed"]
        assert await crew.field(job.id, "takeovers") == "1"
    assert {line["job_id"] for line in second.log.named("job_taken_over")} == set(job_ids)


async def test_a_follower_sees_a_takeover(runtime: Runtime, author: Author, follower_of: Follow) -> None:
    """On the same connection: `started` of the second attempt, `reset`, then its whole answer."""
    follower = follower_of(author.job_id)
    task = await following(follower)
    await author.say("Blue")
    await wait_until(lambda: follower.text == "Blue", "the first attempt")
    await lose(runtime, author.claim)
    second = await Author.claim_next(runtime)
    await second.say("Air", " scatters")
    await second.succeed()
    await task
    assert_saw(follower, await second.log())
    assert len(follower.connections) == 1
    assert [frame.event for frame in follower.frames if frame.id] == [
        "started",
        "delta",
        "started",
        "reset",
        "delta",
        "delta",
        "succeeded",
    ]


async def test_a_zombies_writes_are_refused(crew: Crew) -> None:
    """Redis refuses the writes of an older claim; its worker then closes its call to the upstream."""
    zombie = await crew.worker(lease_s=LEASE_S)
    job_id = await crew.submit("tokens=150 gap-ms=10")
    await crew.begun(job_id)
    zombie.stop_renewing()
    zombie.stop_claiming()
    heir = await crew.worker(lease_s=LEASE_S)
    await wait_until(lambda: job_id in heir.running, "the takeover")
    await wait_until(lambda: not zombie.running, "the zombie to notice", timeout_s=1)
    job = await crew.ended(job_id)
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 2)
    assert [line["job_id"] for line in zombie.log.named("claim_lost")] == [job_id]
    assert zombie.worker.jobs_complete == 0
    assert [name for name, _ in await crew.ours(job_id)] == ["started", "started", "reset", "succeeded"]
    first_call, second_call = crew.calls(job_id)
    assert (first_call.ended, second_call.ended) == ("client_closed", "completed")


async def test_a_follower_never_sees_what_a_zombie_writes(
    runtime: Runtime, author: Author, follower_of: Follow
) -> None:
    """The zombie's event and its ending reach neither the log nor the channel."""
    await author.say("Blue")
    follower = follower_of(author.job_id)
    task = await following(follower)
    await expire_leases(runtime, author.job_id)
    await lose(runtime, author.claim)
    second = await Author.claim_next(runtime)
    await second.say("Air")
    refused = await runtime.log.append(
        author.claim.id, author.claim.epoch, author.seq, [("content_block_delta", b"{}")], published=True
    )
    assert refused == -1
    reply = await runtime.queue.finish(author.claim, Ending(Step.FAIL, error=JobError("x", "x", False)), seq=author.seq)
    assert reply.outcome == "refused"
    await second.succeed()
    await task
    assert_saw(follower, await second.log())
