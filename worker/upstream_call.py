"""One call to the LLM: its events go into the job's log and add up to an answer. Every way it can end is an Outcome.

``run_job.py`` opens and closes the call's row in the ledger; what the closed row says comes from here.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shared.completion import Completion, GarbledStream
from shared.events import OUR_NAMES
from shared.job import Usage
from shared.settings import Settings
from shared.store.queue import Claim
from shared.usage import UNMADE
from worker.content_timers import ContentTimers, SilenceBounds
from worker.governor import Permit, Spent, estimated
from worker.log_writer import JobLog
from worker.outcome import Answered, Breakage, Failure, How, Outcome, UpstreamError, classify
from worker.providers.base import Provider, UpstreamEvent, UpstreamStream
from worker.rate_limit_headers import Allowance

_LAST_READ_S: Final = 0.05


@dataclass(slots=True)
class UpstreamCall:
    """``run`` it once; then ``ended`` and ``spent`` say what the ledger's row holds."""

    permit: Permit
    completion: Completion
    stream: UpstreamStream | None = None
    """Set when the head of the response has arrived."""
    was_asked: bool = True
    """False if the request never left us."""
    first_content_s: float | None = None
    """By the loop's clock."""
    last_content_s: float | None = None
    tokens_counted: int | None = 0
    """How many of its tokens are in the figures; None when all are."""

    async def run(
        self,
        provider: Provider,
        claim: Claim,
        settings: Settings,
        job_log: JobLog,
        *,
        claimed_s: float,
        on_first_content: Callable[[Permit], None],
        on_answered: Callable[[], None],
    ) -> Outcome:
        """Makes the call, and writes the answer's events to ``job_log``.

        ``claimed_s``: when the job was claimed, by the loop's clock. ``on_answered`` is called when the answer is whole and
        only the end of the stream is missing.
        """
        spec = claim.spec
        timers = _timers_of(claim, settings)
        idle = asyncio.timeout(None)
        try:
            async with idle:
                timers.start(idle)
                async with provider.stream(
                    claim.request,
                    model=self.permit.route.model,
                    beta=spec.anthropic_beta,
                    version=spec.anthropic_version,
                    connect_timeout_s=spec.connect_timeout_s or settings.connect_timeout_s,
                ) as stream:
                    self.stream = stream
                    while events := await stream.read():
                        if not self._take(events, job_log) or not self.completion.has_content:
                            timers.on_life(idle)
                        else:
                            timers.on_content(idle)
                            self.last_content_s = timers.content_s
                            if self.first_content_s is None:
                                self.first_content_s = asyncio.get_running_loop().time()
                                on_first_content(self.permit)
                        if self.completion.is_stopped:
                            await _read_to_end(stream)
                            break
                        if stream.is_answered:
                            timers.pause(idle)
                            on_answered()
                        if job_log.is_full:
                            timers.pause(idle)
                            await job_log.room()
                            if not stream.is_answered:
                                timers.resume(idle)
        except UpstreamError as error:
            self.was_asked = error.was_asked
            return error.failure
        except GarbledStream as error:
            return self._garbled(error)
        except TimeoutError:
            if not idle.expired():
                raise
            if self.stream is not None and self.stream.is_guessed:
                return self._garbled(GarbledStream("it went silent before content_block_stop"))
            return timers.failure()
        return self._outcome(claimed_s)

    def _take(self, events: Sequence[UpstreamEvent], job_log: JobLog) -> bool:
        """Adds events to the answer and the log. Returns whether any is more than a sign of life. Raises GarbledStream."""
        is_news = False
        for event in events:
            if event.name == "ping" or event.name in OUR_NAMES:
                continue
            text = self.completion.add(event.name, event.data, event.text)
            job_log.add(event.name, event.data, text)
            is_news = True
        return is_news

    def _outcome(self, claimed_s: float) -> Outcome:
        if not self.completion.is_whole:
            return classify(Breakage(How.ENDED_EARLY, "" if self.stream is None else self.stream.lacks))
        first_content_s = None if self.first_content_s is None else self.first_content_s - claimed_s
        try:
            return Answered(self.completion.result(), self.completion.usage, first_content_s)
        except GarbledStream as error:
            return self._garbled(error)

    def _garbled(self, error: GarbledStream) -> Failure:
        """The failure of a call whose answer cannot be read."""
        return classify(Breakage(How.GARBLED, str(error) if self.stream is None else self.stream.explain(error)))

    @property
    def allowance(self) -> Allowance | None:
        """What its response's headers say about limits."""
        return None if self.stream is None else self.stream.allowance

    def ended(self, outcome: Outcome | None) -> str:
        """How the call ended, as its row in the ledger says it. No outcome: it was interrupted."""
        if not self.was_asked:
            return UNMADE
        match outcome:
            case None:
                return "interrupted"
            case Answered():
                return "succeeded"
            case Failure(error):
                return error.code

    def spent(self, outcome: Outcome | None) -> Spent:
        """What the call used: as the upstream reported it, else estimated and flagged so. A refusal costs nothing, unless it
        came after the beginning of an answer.
        """
        if isinstance(outcome, Answered) and outcome.usage and outcome.usage != Usage():
            return Spent(outcome.usage, is_estimated=False)
        was_refused = isinstance(outcome, Failure) and (
            outcome.error.upstream_status is not None or outcome.how in (How.UNREACHABLE, How.FAULTY)
        )
        if was_refused and not self.completion.has_content:
            return Spent(Usage(), is_estimated=False)
        return Spent(estimated(self.completion, self.permit.input_estimate), is_estimated=True)


def _timers_of(claim: Claim, settings: Settings) -> ContentTimers:
    spec, most_s = claim.spec, settings.pinged_idle_timeout_s
    return ContentTimers(
        first=SilenceBounds.of(spec.first_token_timeout_s, settings.first_token_timeout_s, most_s),
        idle=SilenceBounds.of(spec.content_idle_timeout_s, settings.content_idle_timeout_s, most_s),
        loop=asyncio.get_running_loop(),
    )


async def _read_to_end(stream: UpstreamStream) -> None:
    """The answer is whole. Reads the end of the body, so that the connection can be reused, but hardly waits for it."""
    try:
        async with asyncio.timeout(_LAST_READ_S):
            await stream.read()
    except (TimeoutError, UpstreamError):
        pass
