"""Mutated streams of an upstream: certain answers succeed, doubtful ones fail by name, nothing is lost silently.

``python -m tests.mutations`` runs any number of them, or repeats a single one.
"""

import asyncio
import random
from functools import cache

import pytest

from tests.mutations.campaign import Campaign, Report, smallest_of
from tests.mutations.case import a_case, needs_socket
from tests.mutations.frame import Dialect, Stream
from tests.mutations.judgement import Finding, Kind, findings_of
from tests.mutations.oracle import Verdict, expected_of
from tests.mutations.virtual_time import VirtualTimeLoop
from tests.mutations.worker_under_test import Observed, WorkerUnderTest
from tests.support.facts import Fact

FIXED_SEED = 20261130
SECOND_SEED = 1130
_MOST_SHOWN = 12


def judged(report: Report, fact: Fact) -> None:
    """Fails with the table and the smallest streams."""
    fact(report.table().partition("\n\n")[0])
    shown = [smallest_of(group, report.seed) for group in report.groups[:_MOST_SHOWN]]
    assert not report.groups, "\n\n".join([report.table(), *shown])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_thousand_streams_that_are_the_same_each_time(fact: Fact) -> None:
    judged(Campaign(FIXED_SEED).run(range(1000)), fact)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_thousand_other_streams(fact: Fact) -> None:
    """A fixed seed, so that only a change of the code changes the result; `make fuzz` draws a new seed."""
    judged(Campaign(SECOND_SEED).run(range(1000)), fact)


@pytest.mark.parametrize(("seed", "number"), [(1201, 49004)])
def test_a_stream_that_was_once_misjudged(seed: int, number: int, fact: Fact) -> None:
    """If the mutations change, the numbers make another stream, which must be judged rightly too."""
    judged(Campaign(seed).run([number]), fact)


@pytest.mark.fuzz
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_streams(fact: Fact) -> None:
    judged(Campaign(random.SystemRandom().randrange(1 << 32)).run(range(100_000)), fact)


# --- the fuzzer itself ------------------------------------------------------------------------------------------------


def test_few_cases_are_left_open() -> None:
    """A fuzzer without expectations finds nothing."""
    streams = [a_case(FIXED_SEED, number).stream() for number in range(1000)]
    verdicts = [expected_of(stream).verdict for stream in streams]
    assert verdicts.count(Verdict.EITHER) < 100
    assert verdicts.count(Verdict.DOUBTFUL) > 150
    assert verdicts.count(Verdict.CERTAIN) > 500
    assert sum(needs_socket(stream) for stream in streams) > 50


def test_the_same_numbers_make_the_same_stream() -> None:
    for number in range(50):
        one, other = a_case(7, number), a_case(7, number)
        assert one == other
        assert one.stream().pieces() == other.stream().pieces()


@pytest.mark.parametrize(
    "kind", [Kind.NOT_AS_SENT, Kind.NOT_AS_SEEN, Kind.FAILED, Kind.USAGE, Kind.CALLS, Kind.CRASHED]
)
@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_fault_that_was_planted_is_found(dialect: Dialect, kind: Kind) -> None:
    """A fault in the outcome of a good stream: each kind must be found, in each dialect."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        found = runner.run(_planted(dialect, kind))
    assert kind in {finding.kind for finding in found}, found


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("The LLM's answer broke off.", Kind.UNNAMED),
        ("The LLM's answer broke off: it sent what no answer contains.", Kind.UNNAMED),
        ("The LLM's answer broke off: content is a number.", Kind.UNNAMED),
        ("The LLM's answer broke off: choices[0].delta is a quokka.", Kind.LEAKED),
    ],
)
def test_a_failure_that_says_too_little_or_too_much_is_found(message: str, kind: Kind) -> None:
    stream = an_odd_delta()
    observed = Observed(code="upstream_truncated", message=message, calls=1)
    assert kind in {finding.kind for finding in findings_of(stream, expected_of(stream), observed)}


@cache
def an_odd_delta() -> Stream:
    """A stream whose only oddity is a delta."""
    return next(
        stream
        for number in range(100_000)
        if (stream := a_case(1, number).stream()).all_labels == {"choices.0.delta: another type"}
        and expected_of(stream).verdict is Verdict.DOUBTFUL
    )


async def _planted(dialect: Dialect, kind: Kind) -> list[Finding]:
    """The findings for the first good stream with content and usage, after planting a fault in its outcome."""
    worker = WorkerUnderTest.of_scripts()
    for number in range(2000):
        case = a_case(FIXED_SEED, number)
        stream = case.stream()
        expected = expected_of(stream)
        texts = [block for block in expected.blocks if block["type"] == "text"]
        if case.dialect is not dialect or case.steps or not texts or not expected.usage:
            continue
        observed = await worker.run(stream)
        assert findings_of(stream, expected, observed) == []
        assert observed.result is not None
        assert observed.usage is not None
        match kind:
            case Kind.NOT_AS_SENT:
                observed.result["text"] += "x"
            case Kind.NOT_AS_SEEN:
                observed.events = [event for event in observed.events if event[0] != "content_block_delta"]
            case Kind.FAILED:
                observed.result = None
            case Kind.USAGE:
                observed.usage["output_tokens"] += 1
            case Kind.CALLS:
                observed.calls = 3
            case _:
                observed.crash = "KeyError"
        return findings_of(stream, expected, observed)
    raise AssertionError("no such stream")
