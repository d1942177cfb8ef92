"""Filters of a list: each condition, any two of them, and the bounds of what one page looks at."""

from itertools import combinations
from typing import Any

import pytest

from shared.errors import JobError
from shared.job import Job, JobState, Step, first_id_of, id_at, new_id, spans_between
from shared.job_filter import EVERY_JOB, JobFilter, labels_of
from shared.limits import NO_LIMITS
from shared.store import redis_keys
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from tests.support.batches import a_batch
from tests.support.builders import a_submission, an_id
from tests.support.redis_servers import on_real_redis
from tests.support.store import (
    SUCCESS,
    all_keys,
    claim_one,
    finish,
    kind_of,
    make_overdue,
    now_ms,
    start,
    submit,
    submit_many,
)

TENANT = "tenant-a"
_KEY = "key_" + "0" * 16
_HOUR_MS = 3_600_000


def _failure(code: str) -> Ending:
    return Ending(Step.FAIL, error=JobError(code, "The LLM failed.", retryable=True))


async def _some_of_each(runtime: Runtime) -> list[Job]:
    """Jobs in every state, with and without what a filter can ask for."""
    about: list[dict[str, Any]] = [
        {},
        {"tags": ("red", "blue"), "model": "another"},
        {"tags": ("red",), "metadata": {"run": "7", "row": "1"}},
        {"metadata": {"run": "8", "row": "1"}, "key_id": _KEY},
        {"metadata": {"run": "7"}, "tags": ("blue",), "key_id": _KEY, "model": "another"},
        {"end_user": "ann", "tags": ("red",)},
    ]
    ids: list[str] = []
    for members in about:
        for ending in (SUCCESS, _failure("upstream_error"), _failure("upstream_rejected")):
            claimed = await start(runtime, **members)
            await finish(runtime, claimed, ending)
            ids.append(claimed.id)
        ids.append((await submit(runtime, **members)).id)
        await runtime.jobs.cancel(ids[-1], TENANT)
        ids.append((await submit(runtime, **members)).id)
        await make_overdue(runtime, ids[-1])
        await runtime.jobs.expire()
        ids.append((await start(runtime, **members)).id)
    ids += [(await submit(runtime, **members)).id for members in about]
    await submit(runtime, tenant="tenant-b", tags=("red",), metadata={"run": "7"})
    await a_batch(runtime, 3, tenant=TENANT, tags=("red",))
    return [await runtime.jobs.get(job_id, TENANT) for job_id in ids]


async def _found(runtime: Runtime, wanted: JobFilter, *, limit: int = 100) -> list[str]:
    found: list[str] = []
    after: str | None = None
    for _ in range(1000):
        page = await runtime.jobs.list(TENANT, wanted, after=after, limit=limit)
        assert len(page.jobs) <= limit
        found += [job.id for job in page.jobs]
        after = page.next_after
        if after is None:
            return found
    raise AssertionError("the pages have no end")


async def test_each_condition_and_any_two_find_what_they_say(runtime: Runtime) -> None:
    """The same as a look at every job, whichever index they go through, in pages of any size."""
    jobs = await _some_of_each(runtime)
    moment_ms = jobs[len(jobs) // 2].created_ms
    conditions: list[dict[str, Any]] = [
        *({"status": state} for state in JobState),
        {"model": "another"},
        {"tag": "red"},
        {"tag": "blue"},
        {"metadata": {"run": "7"}},
        {"metadata": {"run": "7", "row": "1"}},
        {"key_id": _KEY},
        {"error_code": "upstream_rejected"},
        {"created_after_ms": moment_ms},
        {"created_before_ms": moment_ms},
        {"tag": "none has it"},
        {"end_user": "ann"},
    ]
    for one, other in [*combinations(conditions, 2), *((each, {}) for each in conditions)]:
        wanted = JobFilter(**one | other)
        expected = sorted((job.id for job in jobs if wanted.matches(job)), reverse=True)
        assert await _found(runtime, wanted) == expected, wanted
        assert await _found(runtime, wanted, limit=2) == expected, wanted
    assert await _found(runtime, EVERY_JOB) == sorted((job.id for job in jobs), reverse=True)


async def test_the_conditions_hold_for_items_of_a_batch_too(runtime: Runtime) -> None:
    """Which are in no label's index: by the list of their batch."""
    batch = await a_batch(runtime, 4, tenant=TENANT, tags=("red",))
    ids = [job_id or "" for job_id in await runtime.batches.item_ids(batch.id, 0, 10)]
    await finish(runtime, await claim_one(runtime), _failure("upstream_error"))
    await submit(runtime, tags=("red",))
    for members, expected in (
        ({"tag": "red"}, ids),
        ({"tag": "blue"}, []),
        ({"error_code": "upstream_error"}, ids[:1]),
        ({"status": JobState.QUEUED}, ids[1:]),
        ({"created_before_ms": 1}, []),
    ):
        assert await _found(runtime, JobFilter(batch_id=batch.id, **members)) == expected[::-1]


async def test_a_page_goes_on_after_an_item_that_was_erased(runtime: Runtime) -> None:
    """An operation that erases a batch's items has only erased ones behind it."""
    batch = await a_batch(runtime, 5, tenant=TENANT)
    ids = [job_id or "" for job_id in await runtime.batches.item_ids(batch.id, 0, 10)]
    await runtime.jobs.cancel(ids[3], TENANT)
    await runtime.jobs.erase(ids[3], TENANT)
    page = await runtime.jobs.list(TENANT, JobFilter(batch_id=batch.id), after=ids[3], limit=10)
    assert [job.id for job in page.jobs] == ids[2::-1]
    page = await runtime.jobs.list(TENANT, JobFilter(batch_id=batch.id), after=new_id("job"), limit=10)
    assert page.jobs == []


@on_real_redis
async def test_a_page_looks_at_a_few_thousand_jobs_and_no_more(runtime: Runtime) -> None:
    """Then it is short, or empty, and its next goes on."""
    (first,) = await submit_many(runtime, 1, model="another")
    await submit_many(runtime, 5_500)
    page = await runtime.jobs.list(TENANT, JobFilter(model="another"), after=None, limit=10)
    assert page.jobs == []
    assert page.next_after is not None
    page = await runtime.jobs.list(TENANT, JobFilter(model="another"), after=page.next_after, limit=10)
    assert [job.id for job in page.jobs] == [first]
    assert page.next_after is None


@on_real_redis
async def test_a_rare_label_is_found_among_many_jobs_in_one_page(runtime: Runtime) -> None:
    """One page with its index where a look at the jobs would take two."""
    failed = await start(runtime)
    (tagged,) = await submit_many(runtime, 1, tags=("rare",))
    (described,) = await submit_many(runtime, 1, metadata={"run": "7"})
    await submit_many(runtime, 5_500)
    await finish(runtime, failed, _failure("upstream_error"))
    for wanted, expected in (
        (JobFilter(tag="rare"), tagged),
        (JobFilter(metadata={"run": "7"}), described),
        (JobFilter(error_code="upstream_error"), failed.id),
        (JobFilter(status=JobState.FAILED), failed.id),
    ):
        page = await runtime.jobs.list(TENANT, wanted, after=None, limit=10)
        assert ([job.id for job in page.jobs], page.next_after) == ([expected], None)


async def test_a_label_is_found_over_many_spans_of_ids(runtime: Runtime) -> None:
    """A year of jobs has a thousand spans: a page looks at some, and its next goes on at the end of one."""
    today_ms = await now_ms(runtime)
    ids = [
        f"{id_at('job', today_ms - days * 24 * _HOUR_MS)[:-1]}{number}"
        for number, days in enumerate((0, 1, 30, 300, 900))
    ]
    for job_id in ids:
        await submit(runtime, job_id=job_id, tags=("red",))
    assert await _found(runtime, JobFilter(tag="red"), limit=1) == ids
    assert await _found(runtime, JobFilter(tag="red"), limit=100) == ids


async def test_an_overdue_job_is_found_by_the_state_in_which_a_read_ends_it(runtime: Runtime) -> None:
    """Also before any loop has ended it."""
    job = await submit(runtime)
    await make_overdue(runtime, job.id)
    assert await _found(runtime, JobFilter(status=JobState.EXPIRED)) == [job.id]
    assert await _found(runtime, JobFilter(status=JobState.QUEUED)) == []


# --- the index ---


async def test_a_job_without_labels_that_succeeds_writes_no_index(runtime: Runtime) -> None:
    """So a submit and an end cost what they did."""
    await finish(runtime, await start(runtime), SUCCESS)
    await submit(runtime)
    assert "labels" not in {kind_of(name) for name in await all_keys(runtime._commands)}


async def test_the_index_lives_as_long_as_the_record_that_is_kept_longest(runtime: Runtime) -> None:
    """Until a job ends, as long as it can wait and run; then as long as its record."""
    job = await submit(runtime, tags=("red",), expires_in_s=7200, timeout_s=600)
    name = redis_keys.labels(TENANT, job.id[4:9])
    assert 7800_000 <= await runtime._commands.call("PTTL", name) <= 7800_000 + _HOUR_MS
    await runtime.jobs.cancel(job.id, TENANT)
    record_ms = await runtime._commands.call("PTTL", redis_keys.job(job.id))
    assert record_ms <= await runtime._commands.call("PTTL", name) <= record_ms + _HOUR_MS


@pytest.mark.parametrize("how", ["erase", "erase_some"])
async def test_an_erased_job_leaves_nothing_in_the_index(runtime: Runtime, how: str) -> None:
    """Neither its tags and metadata nor how it ended."""
    job = await submit(runtime, tags=("red",), metadata={"run": "7"})
    assert job.id in str(await runtime._commands.call("ZRANGE", redis_keys.labels(TENANT, job.id[4:9]), 0, -1))
    await runtime.jobs.cancel(job.id, TENANT)
    if how == "erase":
        await runtime.jobs.erase(job.id, TENANT)
    else:
        await runtime.jobs.erase_some(TENANT)
    assert "labels" not in {kind_of(name) for name in await all_keys(runtime._commands)}


async def test_the_index_holds_no_text_of_the_caller(runtime: Runtime) -> None:
    """A hash of it: it stays for a while after the record's TTL."""
    job = await submit(runtime, tags=("canary",), metadata={"canary": "canary"})
    assert "canary" not in str(await runtime._commands.call("ZRANGE", redis_keys.labels(TENANT, job.id[4:9]), 0, -1))
    words = labels_of(job.spec).split()
    assert len(set(words)) == 2
    assert labels_of(a_submission(limits=NO_LIMITS).spec) == ""


def test_spans_cover_all_ids_between_two() -> None:
    """The first and the last included, newest first."""
    old, new = id_at("job", 1_700_000_000_000), an_id()
    spans = spans_between(new, old)
    assert (spans[0], spans[-1]) == (new[4:9], old[4:9])
    assert sorted(spans, reverse=True) == spans
    assert len(set(spans)) == len(spans)
    assert spans_between(new, new) == [new[4:9]]
    assert spans_between(old, new) == []
    assert old < first_id_of(spans[0]) <= new
    assert first_id_of(spans[0])[:9] == new[:9]
