"""The life cycle, step by step, and the ids of jobs."""

import threading

import msgspec
import pytest

from shared.job import (
    BANDS,
    TERMINAL_STATES,
    TRANSITIONS,
    JobSpec,
    JobState,
    Priority,
    Step,
    new_id,
)

QUEUED, RUNNING = JobState.QUEUED, JobState.RUNNING
ALLOWED = {
    (QUEUED, Step.CLAIM): RUNNING,
    (QUEUED, Step.TIME_OUT): JobState.FAILED,
    (QUEUED, Step.EXPIRE): JobState.EXPIRED,
    (QUEUED, Step.CANCEL): JobState.CANCELLED,
    (RUNNING, Step.RELEASE): QUEUED,
    (RUNNING, Step.REAP): QUEUED,
    (RUNNING, Step.SUCCEED): JobState.SUCCEEDED,
    (RUNNING, Step.FAIL): JobState.FAILED,
    (RUNNING, Step.LOSE): JobState.FAILED,
    (RUNNING, Step.CANCEL): JobState.CANCELLED,
}


def test_the_table_allows_these_steps_and_no_other() -> None:
    """The whole life cycle, written out a second time."""
    steps = {(state, step): target for step, (sources, target) in TRANSITIONS.items() for state in sources}
    assert steps == ALLOWED


def test_terminal_states_are_final() -> None:
    """No step starts from a terminal state; every other state has a step."""
    sources = {state for states, _ in TRANSITIONS.values() for state in states}
    assert sources == set(JobState) - TERMINAL_STATES


def test_every_state_can_be_reached_and_left() -> None:
    """Every state can be reached from a submit, and a terminal state from every state."""
    reached = {QUEUED}
    for _ in JobState:
        reached |= {target for states, target in TRANSITIONS.values() if states & reached}
    assert reached == set(JobState)
    assert set(TRANSITIONS) == set(Step)


def test_bands_are_ordered_from_high_to_low() -> None:
    """CLAIM reads them in this order."""
    assert BANDS == (Priority.HIGH, Priority.NORMAL, Priority.LOW)


def test_ids_are_prefixed_of_one_length_and_safe_in_urls() -> None:
    """26 letters and digits that cannot be confused."""
    for prefix in ("job", "batch", "req"):
        name, _, rest = new_id(prefix).partition("_")
        assert (name, len(rest)) == (prefix, 26)
        assert set(rest) <= set("0123456789abcdefghjkmnpqrstvwxyz")


def test_ids_sort_by_creation_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the millisecond, over centuries."""
    moments_ms = [
        0,
        1,
        31,
        32,
        1_023,
        1_024,
        1_795_442_531_481,
        1_795_442_531_482,
        2_000_000_000_000,
        9_999_999_999_999,
    ]
    ids = []
    for moment_ms in moments_ms:
        monkeypatch.setattr("time.time_ns", lambda now_ms=moment_ms: now_ms * 1_000_000)
        ids.append(new_id("job"))
    assert ids == sorted(ids)


def test_ids_are_unique_within_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has 80 random bits."""
    monkeypatch.setattr("time.time_ns", lambda: 1_795_442_531_482_000_000)
    assert len({new_id("job") for _ in range(20_000)}) == 20_000


def test_ids_are_unique_over_threads() -> None:
    """However many threads create them."""
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.extend(new_id("job") for _ in range(500))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 2_000


def test_a_spec_survives_its_storage() -> None:
    """It is one JSON field of the record; defaults are not stored, and are there again when it is read."""
    plain = JobSpec(model="a-model")
    assert msgspec.json.encode(plain) == b'{"model":"a-model"}'
    full = JobSpec(
        model="ünï",
        priority=Priority.LOW,
        timeout_s=1,
        max_attempts=9,
        not_before_ms=5,
        metadata={"k": "v"},
        batch_id="b",
    )
    for spec in (plain, full):
        assert msgspec.json.decode(msgspec.json.encode(spec), type=JobSpec) == spec


def test_a_spec_of_a_later_release_can_be_read() -> None:
    """During a deploy both releases run: unknown members are ignored."""
    assert msgspec.json.decode(b'{"model":"m","colour":"red"}', type=JobSpec) == JobSpec(model="m")
