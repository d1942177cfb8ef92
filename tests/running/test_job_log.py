"""What a worker writes to a job's log: in small portions, completely and once, whatever Redis forgets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from shared.errors import StorageUnavailable
from shared.events import text_of
from shared.job import JobState, Step, Usage
from shared.store import redis_keys
from shared.store.log import Log
from shared.store.queue import Claim, Ending, Finished
from shared.store.runtime import Runtime
from tests.running.crew import STEADY, Crew, LogLines, attempt_text, replace
from tests.support.builders import a_text_delta, encoded
from tests.support.store import append, claim_one, start
from tests.support.wait import wait_until
from worker import log_writer
from worker.log_writer import JobLog, LogWriter
from worker.redis_trouble import Outage


class Writing:
    """A claim and its log, without a worker."""

    def __init__(self, crew: Crew, claim: Claim) -> None:
        self.crew = crew
        self.claim = claim
        self.lines = LogLines()
        self.owner: asyncio.Task[object] = asyncio.create_task(_for_ever(), name="owner")
        self.writer = LogWriter(crew.runtime, Outage(self.lines))  # type: ignore[arg-type]
        self.log: JobLog = self.writer.open(claim, self.owner)
        self.said: list[str] = []

    @property
    def success(self) -> Ending:
        """An ending with the written text as its result."""
        return Ending(Step.SUCCEED, encoded({"text": "".join(self.said)}), Usage())

    def say(self, *texts: str, index: int = 0) -> None:
        for text in texts:
            self.said.append(text)
            self.log.add(*a_text_delta(text, index=index), text=(index, text))

    async def events(self) -> list[tuple[str, str | None]]:
        """The name and text of each event after `started`."""
        return [(event.name, text_of(event)) for event in (await self.crew.events(self.claim.id))[1:]]

    async def texts(self) -> list[str | None]:
        return [text for _, text in await self.events()]

    async def forget_from(self, seq: int) -> None:
        """Rolls the log back to before ``seq``, as if Redis had restarted from a shorter file."""
        await forget_from(self.crew.runtime, self.claim.id, seq)


async def forget_from(runtime: Runtime, job_id: str, seq: int) -> None:
    """Restores the stream as a shorter file would, and the record without what the lost APPENDs wrote.

    As with a restart, all connections end in the same moment.
    """
    commands = runtime._commands
    lost = (
        commands.call("MULTI"),
        commands.call(
            "EVAL",
            b"""local kept = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1])
            redis.call('DEL', KEYS[1])
            for _, entry in ipairs(kept) do redis.call('XADD', KEYS[1], entry[1], unpack(entry[2])) end
            redis.call('HDEL', KEYS[2], 'published', 'failures')""",
            2,
            redis_keys.log(job_id),
            redis_keys.job(job_id),
            seq,
        ),
    )
    await asyncio.gather(*lost, commands.call("CLIENT", "KILL", "SKIPME", "no"), commands.call("EXEC"))


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()


@pytest.fixture
async def writing(crew: Crew) -> AsyncIterator[Writing]:
    """A log writer for a job that was just claimed."""
    claim = await start(crew.runtime)
    crew.jobs.append(claim.id)
    writing = Writing(crew, claim)
    yield writing
    writing.log.close()
    writing.owner.cancel()
    await asyncio.wait([writing.owner])


async def test_texts_that_come_together_are_one_event(writing: Writing) -> None:
    writing.say("Hello", ", ", "world")
    await writing.log.land()
    assert await writing.texts() == ["Hello, world"]


async def test_what_was_shown_counts_as_shown_until_its_reset_is_in_the_log(
    writing: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may die between two flushes of a long tail; the next worker must then write the reset."""
    monkeypatch.setattr(log_writer, "_MOST_EVENTS_PER_FLUSH", 2)
    shown: list[tuple[list[str], str | None]] = []

    def looking_after(send: Callable[..., "asyncio.Future[Any]"]) -> Callable[..., "asyncio.Future[Any]"]:
        def send_and_look(*arguments: Any, **named: Any) -> "asyncio.Future[Any]":
            reply = send(*arguments, **named)
            looking.append(asyncio.create_task(look([name for name, _ in arguments[3]], reply)))
            return reply

        return send_and_look

    async def look(names: list[str], reply: "asyncio.Future[Any]") -> None:
        await reply
        shown.append((names, await writing.crew.field(writing.claim.id, "published")))

    looking: list[asyncio.Task[None]] = []
    for form in ("append", "extend"):
        replace(writing.writer.log, form, looking_after(getattr(writing.writer.log, form)))
    writing.say("a")
    writing.say("b", index=1)
    writing.say("c", index=2)
    writing.log.begin_attempt(2, 1, b"{}", b"{}")
    await writing.log.land()
    await asyncio.gather(*looking)
    assert shown == [
        (["content_block_delta"] * 2, "1"),
        (["content_block_delta", "retry"], "1"),
        (["reset"], None),
    ]


async def test_only_neighbours_of_one_block_are_merged(writing: Writing) -> None:
    writing.say("a", "b")
    writing.say("c", index=1)
    writing.say("d", index=0)
    writing.log.add("ping_of_tomorrow", b"{}")
    writing.say("e", index=0)
    await writing.log.land()
    assert await writing.events() == [
        ("content_block_delta", "ab"),
        ("content_block_delta", "c"),
        ("content_block_delta", "d"),
        ("ping_of_tomorrow", None),
        ("content_block_delta", "e"),
    ]


async def test_the_first_word_after_a_silence_goes_out_at_once(
    writing: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "MERGE_S", 0.3)
    writing.writer.merge_s = 0.3
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    writing.say("first")
    await wait_until(lambda: has(writing, ["first"]), "the first word")
    writing.say("second")
    writing.say("third")
    await wait_until(lambda: has(writing, ["first", "secondthird"]), "the others, merged")
    assert loop.time() - began_s >= 0.29


async def has(writing: Writing, texts: list[str]) -> bool:
    return await writing.texts() == texts


async def test_there_is_one_flush_at_a_time_and_later_events_are_not_lost(writing: Writing) -> None:
    appended = _note_sent(writing, "append")
    extended = _note_sent(writing, "extend")
    for number in range(200):
        writing.log.add("an_event", b"%d" % number)
        writing.log.flush()
    await writing.log.land()
    assert len(appended) == 1
    assert len(extended) <= 2
    events = await writing.crew.events(writing.claim.id)
    assert [event.data for event in events[1:]] == [b"%d" % number for number in range(200)]


async def test_thousands_of_unsent_events_are_sent_in_portions_and_the_end_after_them(writing: Writing) -> None:
    for number in range(1700):
        writing.log.add("an_event", b"%d" % number)
    assert await writing.log.finish(writing.success) is Finished.ENDED
    events = await writing.crew.events(writing.claim.id)
    assert len(events) == 1702
    assert events[-1].name == "succeeded"


async def test_the_end_is_sent_once_after_pending_events(writing: Writing) -> None:
    """It carries the whole result; sent too early, it would be refused and sent again."""
    finishes = 0
    real_finish = writing.writer.queue.finish

    async def finish_noted(*arguments: Any, **named: Any) -> Any:
        nonlocal finishes
        finishes += 1
        return await real_finish(*arguments, **named)

    replace(writing.writer.queue, "finish", finish_noted)
    writing.say("first")
    writing.log.flush()
    writing.say("second")
    assert await writing.log.finish(writing.success) is Finished.ENDED
    assert finishes == 1
    assert await writing.texts() == ["first", "second", None]


def _note_sent(writing: Writing, form: str) -> list[int]:
    """The first seq of each flush of a form (``append`` or ``extend``) from now on."""
    send, sent = getattr(writing.writer.log, form), []

    def send_noted(job_id: str, epoch: int, first_seq: int, events: Any, **more: Any) -> "asyncio.Future[Any]":
        sent.append(first_seq)
        return cast("asyncio.Future[Any]", send(job_id, epoch, first_seq, events, **more))

    replace(writing.writer.log, form, send_noted)
    return sent


async def test_after_the_first_flush_plain_commands_do(writing: Writing) -> None:
    appended, extended = _note_sent(writing, "append"), _note_sent(writing, "extend")
    for text in ("one", "two", "three"):
        writing.say(text)
        await writing.log.land()
    assert (appended, extended) == ([1], [2, 3])
    assert await writing.texts() == ["one", "two", "three"]


async def test_after_a_reconnect_the_script_looks_first(writing: Writing) -> None:
    """Redis may have been restarted from a shorter file."""
    for text in ("one", "two"):
        writing.say(text)
        await writing.log.land()
    appended, extended = _note_sent(writing, "append"), _note_sent(writing, "extend")
    await writing.forget_from(9)
    for text in ("three", "four"):
        writing.say(text)
        await writing.log.land()
    assert (appended, extended[-1]) == ([3], 4)
    assert await writing.texts() == ["one", "two", "three", "four"]


async def test_a_full_redis_still_takes_the_rest_of_an_answer(writing: Writing) -> None:
    """A plain XADD is refused at maxmemory; the script is not."""
    writing.say("one")
    await writing.log.land()
    commands = writing.crew.runtime._commands
    await commands.call("CONFIG", "SET", "maxmemory", "1")
    try:
        writing.say("two")
        await writing.log.land()
    finally:
        await commands.call("CONFIG", "SET", "maxmemory", "0")
    assert await writing.texts() == ["one", "two"]
    assert not writing.log.is_lost


async def test_a_cancelled_job_takes_no_plain_commands_either(writing: Writing) -> None:
    writing.say("one")
    await writing.log.land()
    await writing.crew.runtime.jobs.cancel(writing.claim.id, writing.claim.tenant)
    writing.say("two")
    await writing.log.land()
    assert writing.log.is_lost
    assert [event.name for event in await writing.crew.events(writing.claim.id)] == [
        "started",
        "content_block_delta",
        "cancelled",
    ]


@pytest.mark.parametrize("kept", [1, 2, 3])
async def test_a_tail_that_redis_lost_is_sent_again(writing: Writing, kept: int) -> None:
    for text in ("one", "two", "three"):
        writing.say(text)
        await writing.log.land()
    await writing.forget_from(kept)
    writing.say("four")
    await writing.log.land()
    assert await writing.texts() == ["one", "two", "three", "four"]
    assert await writing.crew.field(writing.claim.id, "published") == "1"


@pytest.mark.parametrize("kept", [1, 2, 3])
async def test_a_tail_that_redis_lost_is_sent_again_before_the_end(writing: Writing, kept: int) -> None:
    for text in ("one", "two", "three"):
        writing.say(text)
        await writing.log.land()
    await writing.forget_from(kept)
    assert await writing.log.finish(writing.success) is Finished.ENDED
    assert await writing.texts() == ["one", "two", "three", None]


async def test_lost_fields_of_the_record_are_sent_again_with_the_tail(writing: Writing) -> None:
    """The attempts and failures of this claim, and whether followers have seen content."""
    writing.say("one")
    writing.log.begin_attempt(2, 1, b"{}", b"{}")
    await writing.log.land()
    await writing.forget_from(2)
    await writing.crew.runtime._commands.call("HSET", redis_keys.job(writing.claim.id), "attempts", 1)
    writing.say("two")
    await writing.log.land()
    assert [await writing.crew.field(writing.claim.id, name) for name in ("published", "attempts", "failures")] == [
        "1",
        "2",
        "1",
    ]


@pytest.mark.parametrize("ends", [False, True], ids=["in the middle", "at the end"])
async def test_a_log_without_the_claims_beginning_is_not_written_on(writing: Writing, ends: bool) -> None:
    """The worker's unsent events would begin in the middle; so it drops the job, which runs again after its lease."""
    writing.say("one")
    await writing.log.land()
    await writing.crew.runtime._commands.call("DEL", redis_keys.log(writing.claim.id))
    if ends:
        assert await writing.log.finish(writing.success) is Finished.REFUSED
    else:
        writing.say("two")
        await writing.log.land()
    assert writing.log.is_lost
    await asyncio.wait([writing.owner])
    assert writing.owner.cancelled()
    assert await writing.crew.events(writing.claim.id) == []
    assert await writing.crew.state(writing.claim.id) is JobState.RUNNING


async def test_a_reply_that_was_lost_after_the_write_doubles_nothing(writing: Writing) -> None:
    real_append = Log.append
    lost = 0

    def append_and_lose_the_answer(*arguments: Any, **named: Any) -> "asyncio.Future[int]":
        nonlocal lost
        written = real_append(writing.writer.log, *arguments, **named)
        if lost >= 3:
            return written
        lost += 1
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        answer.set_exception(StorageUnavailable())
        return answer

    replace(writing.writer.log, "append", append_and_lose_the_answer)
    writing.say("one")
    await writing.log.land()
    writing.say("two")
    assert await writing.log.finish(writing.success) is Finished.ENDED
    assert lost == 3
    assert await writing.texts() == ["one", "two", None]
    assert writing.lines.named("redis_trouble") == [
        {"code": "storage_unavailable", "detail": StorageUnavailable().detail}
    ], "told once, not for each call"


async def test_an_end_whose_reply_was_lost_is_an_end(writing: Writing) -> None:
    real_finish = writing.writer.queue.finish
    answers: list[Finished] = []

    async def finish_and_lose_the_answer(*arguments: Any, **named: Any) -> Any:
        reply = await real_finish(*arguments, **named)
        answers.append(reply.outcome)
        if len(answers) < 3:
            raise StorageUnavailable
        return reply

    replace(writing.writer.queue, "finish", finish_and_lose_the_answer)
    writing.say("one")
    assert await writing.log.finish(writing.success) is Finished.ALREADY
    assert answers == [Finished.ENDED, Finished.ALREADY, Finished.ALREADY]
    assert await writing.texts() == ["one", None]


async def test_a_claim_that_is_over_writes_nothing_more(writing: Writing) -> None:
    await writing.crew.runtime.jobs.cancel(writing.claim.id, "tenant-a")
    writing.say("one")
    await writing.log.land()
    assert writing.log.is_lost
    assert await writing.log.finish(writing.success) is Finished.REFUSED
    await asyncio.wait([writing.owner])
    assert await writing.crew.names(writing.claim.id) == ["started", "cancelled"]


async def test_the_newer_of_two_claims_is_the_only_one_that_writes(writing: Writing) -> None:
    runtime = writing.crew.runtime
    assert await runtime.queue.release(writing.claim, reason="drained")
    heir = await claim_one(runtime)
    writing.say("from the older one")
    await writing.log.land()
    assert writing.log.is_lost
    await append(runtime, heir, a_text_delta("from the heir"))
    assert attempt_text(await writing.crew.events(heir.id)) == "from the heir"


async def test_reset_is_written_only_after_shown_content(crew: Crew) -> None:
    """The second attempt showed nothing, so the third begins without a reset."""
    await crew.worker()
    job_id = await crew.submit("end=3x1 fail=529x2 gap-ms=15")
    await crew.ended(job_id)
    assert [name for name, _ in await crew.ours(job_id)] == ["started", "retry", "reset", "retry", "succeeded"]


@pytest.mark.parametrize("kept", [1, 5, 9])
async def test_a_stream_goes_on_over_a_rollback(crew: Crew, kept: int) -> None:
    """The fixture would find gaps, doubled words or a missing reset in the log after the test."""
    first = await crew.worker(lease_s=0.6)
    job_id = await crew.submit("tokens=120 gap-ms=10")
    await crew.begun(job_id, 30)
    await forget_from(crew.runtime, job_id, kept)
    await crew.begun(job_id, 50)
    await first.killed()
    await crew.worker(lease_s=0.6)
    job = await crew.ended(job_id)
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 2)


async def test_a_record_that_was_rolled_back_to_the_queue_is_run_again(crew: Crew) -> None:
    """The file of Redis ended before the claim."""
    hand = await crew.worker(lease_s=0.5)
    job_id = await crew.submit(model=STEADY, timeout_s=3600)
    await crew.begun(job_id)
    names = [
        redis_keys.job(job_id),
        redis_keys.log(job_id),
        redis_keys.plain("running"),
        f"{redis_keys.SHARD}tenant_running:tenant-a",
    ]
    flow = redis_keys.flow_of("normal", "tenant-a", STEADY)
    await crew.runtime._commands.call(
        "EVAL",
        b"""redis.call('HSET', KEYS[1], 'state', 'queued')
            redis.call('HDEL', KEYS[1], 'epoch', 'worker', 'confirmed', 'published', 'started_ms', 'attempts')
            redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
            redis.call('ZADD', KEYS[5], 9e12, ARGV[1])
            redis.call('ZADD', KEYS[6], 1, ARGV[1])
            redis.call('ZADD', KEYS[7], 0, ARGV[2])""",
        7,
        *names,
        redis_keys.plain("waiting"),
        redis_keys.flow(flow),
        f"{redis_keys.SHARD}ready:normal",
        job_id,
        flow,
    )
    await wait_until(lambda: len(crew.calls(job_id)) == 2, "the second run")
    assert hand.worker.job_counter == 1
    await crew.runtime.jobs.cancel(job_id, "tenant-a")
