"""llmock's journal and verdict, and what they mean for us.

Where our design differs from the verdict on purpose, a test names the check and the reason; every other check must
pass, including warnings.
"""

import asyncio
from collections.abc import Collection
from typing import Any, Final, Self

import msgspec
from llmock.chaos import ChaosSettings, StreamChaos
from llmock.journal import RequestRecord
from llmock.pytest_plugin import LLMock
from llmock.verdict import NON_RETRYABLE, RETRYABLE, Finding

from shared.job import Job
from tests.judged.surface import Surface
from tests.running.crew import Crew

ANSWER: Final = "The café's answer,  in nine pieces:\n\n1 two 三 🦀!"
"""llmock's answer, unless a test scripts another one."""

RETRY_AFTER_IGNORED: Final = "retry_after_ignored"
RETRIED_NON_RETRYABLE: Final = "retried_non_retryable"
RETRY_STORM: Final = "retry_storm"
TRUNCATED_STREAM_ACCEPTED: Final = "truncated_stream_accepted"
MALFORMED_CHUNK_IGNORED: Final = "malformed_chunk_ignored"
NO_BACKOFF: Final = "no_backoff"
GAVE_UP: Final = "gave_up"
NO_READ_TIMEOUT: Final = "no_read_timeout"

CHECKS: Final = frozenset(
    {
        RETRY_AFTER_IGNORED,
        RETRIED_NON_RETRYABLE,
        RETRY_STORM,
        TRUNCATED_STREAM_ACCEPTED,
        MALFORMED_CHUNK_IGNORED,
        NO_BACKOFF,
        GAVE_UP,
        NO_READ_TIMEOUT,
    }
)
"""All checks of llmock 0.2.2."""

FULL_JITTER: Final = frozenset({NO_BACKOFF})
"""Our n-th wait is uniform in [0, base · 2^(n-1)], so two in a row are often short, or the second is shorter. llmock
reports the first as no delay and the second as a constant interval. For tests whose jobs fail more than once without a
Retry-After; test_waits.py checks the waits themselves."""

RETRIED: Final = RETRYABLE
FINAL: Final = frozenset(range(400, 500)) - RETRIED
"""Final statuses, unless the error's type decides otherwise."""

assert NON_RETRYABLE <= FINAL


class Judge(LLMock):
    """llmock for one test: scripted by its own methods, or with random faults."""

    def weather(self, chaos: ChaosSettings | None = None, stream_chaos: StreamChaos | None = None) -> Self:
        """Turns random faults on."""
        state = self._server.state
        state.chaos = (chaos or ChaosSettings()).validated()
        state.stream_chaos = (stream_chaos or StreamChaos()).validated()
        return self

    async def journal(self) -> list[RequestRecord]:
        """All requests, after none is in progress. Read in a thread, because the loop may have to close connections."""
        return await asyncio.to_thread(lambda: self.requests)

    async def records_of(self, crew: Crew, job_id: str) -> list[RequestRecord]:
        """The requests of one job, in order."""
        nonce = f"nonce=n{crew.jobs.index(job_id) + 1} "
        return [record for record in await self.journal() if nonce in _prompt_of(record.body)]

    async def passes(self, surface: Surface, *, but: Collection[str] = ()) -> None:
        """Fails with llmock's report unless each of its checks passes, ``but`` for the named ones.

        One check is corrected here: llmock reports a malformed chunk as ignored if it could send its whole answer
        before our client reacted, which is always so for the last chunk. A second request for the same body disproves
        that; and a malformed ping loses nothing.
        """
        records = {record.seq: record for record in await self.journal()}
        verdict = await asyncio.to_thread(self.verdict)
        unknown = {finding.code for finding in verdict.findings} - CHECKS
        bad = [
            finding.code
            for finding in verdict.findings
            if finding.code not in but and not _was_not_ignored(finding, records, surface)
        ]
        assert not unknown, verdict.render()
        assert not bad, verdict.render()
        assert verdict.passed or but, verdict.render()
        assert {record.sdk_retry_count for record in records.values()} <= {0, None}, "the SDK retries behind our back"

    async def findings(self) -> set[str]:
        """The names of the failed checks."""
        return {finding.code for finding in (await asyncio.to_thread(self.verdict)).findings}


def _was_not_ignored(finding: Finding, records: dict[int, RequestRecord], surface: Surface) -> bool:
    if finding.code != MALFORMED_CHUNK_IGNORED:
        return False
    judged = records[finding.seqs[0]]
    is_ping = judged.fault in {f"stream:malformed@{chunk}" for chunk in surface.pings}
    return is_ping or any(
        later.fingerprint == judged.fingerprint and later.seq > judged.seq for later in records.values()
    )


def _prompt_of(body: Any) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else str(content)


def is_whole(record: RequestRecord, surface: Surface) -> bool:
    """Whether llmock sent the whole answer."""
    harmless = {None, *(f"stream:malformed@{chunk}" for chunk in surface.pings)}
    return record.status == 200 and record.completed and record.fault in harmless


def text_of(job: Job) -> str:
    """The text of a job that succeeded."""
    assert job.state == "succeeded", job.error
    assert job.result is not None
    text: str = msgspec.json.decode(bytes(job.result))["text"]
    return text
