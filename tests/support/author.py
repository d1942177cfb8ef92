"""A stand-in for a worker: the test decides which event is appended to a job's log, and when."""

from dataclasses import dataclass, field
from typing import Any, Self

from shared.errors import JobError
from shared.events import Event, OurEvent
from shared.job import Step
from shared.store.log import REFUSED
from shared.store.queue import Claim, Ending, Finished
from shared.store.runtime import Runtime
from tests.support.builders import a_text_delta, encoded, message_start, wired
from tests.support.store import claim_one, start

TENANT = "default"
"""The tenant of a caller without X-Tenant."""


@dataclass
class Author:
    """Holds a claim on a job and writes its log."""

    runtime: Runtime
    claim: Claim
    seq: int = 0
    said: list[str] = field(default_factory=list)
    """The texts of this attempt."""

    def __post_init__(self) -> None:
        self.seq = self.claim.next_seq

    @classmethod
    async def start(cls, runtime: Runtime, **members: Any) -> Self:
        """Submits a job and claims it; the queue must be empty."""
        return cls(runtime, await start(runtime, tenant=members.pop("tenant", TENANT), **members))

    @classmethod
    async def claim_next(cls, runtime: Runtime) -> Self:
        """Claims the first job in the queue."""
        return cls(runtime, await claim_one(runtime))

    @property
    def job_id(self) -> str:
        return self.claim.id

    async def write(self, *events: tuple[str, bytes], attempts: int = 0) -> None:
        """Appends the events."""
        reply = await self.runtime.log.append(
            self.claim.id, self.claim.epoch, self.seq, events, published=True, attempts=attempts
        )
        assert reply != REFUSED, "the claim is over"
        self.seq += len(events)
        assert reply == self.seq

    async def open(self) -> None:
        """Appends message_start, which followers with ``format=text`` do not see."""
        await self.write(*wired([message_start(input_tokens=1)]))

    async def say(self, *texts: str) -> None:
        """Appends one text delta per text, all in one append."""
        await self.write(*[a_text_delta(text) for text in texts])
        self.said += texts

    async def try_again(self, attempt: int) -> None:
        """Begins another attempt in the same claim, as after an upstream that failed in mid-answer."""
        await self.write(
            (OurEvent.RETRY, encoded({"attempt": attempt, "reason": "upstream_error", "delay_ms": 1})),
            (OurEvent.RESET, encoded({"attempt": attempt, "reason": "upstream_failed"})),
            attempts=attempt,
        )
        self.said.clear()

    async def succeed(self) -> None:
        """Ends the job with the texts of this attempt as its result."""
        text = "".join(self.said)
        message = {"model": "a-model-20260101", "content": [{"type": "text", "text": text}]}
        await self._finish(Ending(Step.SUCCEED, encoded({"text": text, "stop_reason": "end_turn", "message": message})))

    async def fail(self) -> None:
        """Ends the job without a result."""
        await self._finish(Ending(Step.FAIL, error=JobError("upstream_error", "The LLM failed.", retryable=True)))

    async def _finish(self, ending: Ending) -> None:
        reply = await self.runtime.queue.finish(self.claim, ending, seq=self.seq)
        assert reply.outcome is Finished.ENDED

    async def log(self) -> list[Event]:
        """All events of all attempts."""
        return await self.runtime.log.read(self.claim.id, count=100_000)
