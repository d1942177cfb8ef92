"""Runs one claimed job to its end: the list of steps from the claim to FINISH.

Every way it can end is a value (see outcome.py). ``upstream_call.py`` makes a call; only ``_Run.finish`` and ``_Run.defer``
write to Redis what becomes of the job.
"""

import asyncio
import random
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Final

import msgspec

from shared.completion import Completion
from shared.job import LONGEST_WAIT_IN_SLOT_S, JobKind, Step
from shared.routes import ProviderName, Route, Routes
from shared.settings import Settings, routes_of
from shared.store.queue import UNPRICED, Claim, Cost, Ending, Finished
from shared.store.runtime import Runtime
from shared.store.upstreams import Obstacle
from shared.telemetry import Logger
from worker.count_tokens import count_tokens
from worker.figures import WorkerFigures
from worker.governor import Governor, Permit
from worker.llm_state import LlmState
from worker.log_writer import JobLog, LogWriter
from worker.outcome import CUT_SHORT, TIMED_OUT, Answered, Breakage, Failure, How, Outcome, classify
from worker.providers.base import LAST_WORDS_S, Provider
from worker.redis_trouble import Outage
from worker.retry import Deferred, RetryPolicy, retrying
from worker.upstream_call import UpstreamCall

_MARGIN_S: Final = 0.5
_PROBED_S: Final = 6.0
"""Longer than the longest pause between two probes (5 s, in upstream.lua)."""

_OVERLOAD: Final = frozenset({"upstream_overloaded", "upstream_rate_limited"})
"""Errors after which a fallback is called."""

_ASKED_AGAIN_S: Final = (1.0, 5.0)
"""After how many seconds a job that got no permit may be claimed again: at random between these."""


class RunEnd(StrEnum):
    """How a run of a claim ended for the worker. The job itself may have ended elsewhere."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DEFERRED = "deferred"
    LOST = "lost"


@dataclass(frozen=True)
class RunContext:
    """What every run needs; one for a worker process."""

    settings: Settings
    routes: Routes
    providers: Mapping[ProviderName, Provider]
    writer: LogWriter
    governor: Governor
    llm_state: LlmState
    figures: WorkerFigures
    logger: Logger
    runs: "dict[str, _Run]" = field(default_factory=dict)
    """By job id, those under way."""

    def last_tokens_ms(self, claims: Iterable[Claim]) -> dict[str, int]:
        """By job id, when the newest content arrived, by Redis's clock."""
        newest = {claim.id: self.runs[claim.id].last_token_ms for claim in claims if claim.id in self.runs}
        return {job_id: last_ms for job_id, last_ms in newest.items() if last_ms is not None}

    def tokens_per_s(self) -> float:
        """Counts the tokens of the calls under way. Returns the rate of all over the last seconds."""
        return self.figures.look(run.call for run in self.runs.values() if run.call is not None)


def run_context(
    runtime: Runtime, settings: Settings, providers: Mapping[ProviderName, Provider], logger: Logger
) -> RunContext:
    """Made once, in a running event loop."""
    outage = Outage(logger)
    now_s = asyncio.get_running_loop().time
    return RunContext(
        settings=settings,
        routes=routes_of(settings),
        providers=providers,
        writer=LogWriter(runtime, outage),
        governor=Governor(runtime, settings, outage, logger, now_s),
        llm_state=LlmState(),
        figures=WorkerFigures(runtime.figures, now_s),
        logger=logger,
    )


async def run_job(context: RunContext, claim: Claim) -> RunEnd:
    """Calls the LLM until its outcome is final, then finishes the job. If it is cancelled, it leaves the job as it is."""
    owner = asyncio.current_task()
    assert owner is not None
    job_log = context.writer.open(claim, owner)
    run = context.runs[claim.id] = _Run(context, claim, job_log)
    run.report_start()
    try:
        outcome = await run.attempts()
        return await run.finish(outcome)
    except Deferred as wait:
        return await run.defer(wait)
    except asyncio.CancelledError:
        if job_log.is_lost and owner.uncancel() == 0:
            return run.lost()
        raise
    finally:
        run.charge()
        job_log.close()
        del context.runs[claim.id]


class _Run:
    """The state of one run: which attempt it is at."""

    def __init__(self, context: RunContext, claim: Claim, job_log: JobLog) -> None:
        self._context = context
        self._settings = context.settings
        self._claim = claim
        self._log = job_log
        self._loop = asyncio.get_running_loop()
        self._claimed_s = self._loop.time()
        spent_s = (claim.claimed_ms - claim.started_ms) / 1000
        self._ends_s = self._claimed_s + claim.timeout_ms / 1000 - spent_s
        self._attempt = claim.attempt
        self._begun = claim.attempt - 1
        self._failures = 0
        self._overloaded: set[str] = set()
        self._route: str | None = None
        """The name of the newest call's route."""
        self.call: UpstreamCall | None = None
        """The newest call."""
        self._earlier_content_s: float | None = None
        """When the newest content of the calls before it arrived."""
        self._cost: Cost = None
        self._total = asyncio.timeout(None)
        """The timeout of the newest call at the end of the job's own time."""

    async def attempts(self) -> Outcome:
        """The final outcome. Raises Deferred if the next attempt is too far away to wait for it here."""
        spec = self._claim.spec
        if not spec.may_start_over and self._claim.next_seq > 1:  # CLAIM wrote `reset`: followers have a part of it
            return CUT_SHORT
        policy = RetryPolicy(
            max_attempts=spec.max_attempts,
            failures_before=self._claim.failures,
            ends_s=self._ends_s,
            base_s=self._settings.upstream_retry_base_s,
            cap_s=self._settings.upstream_retry_cap_s,
            retry_after_cap_s=self._settings.retry_after_cap_s,
        )
        outcome: Outcome = await retrying(
            policy, now_s=self._loop.time, before_wait=self._before_wait, sleep=asyncio.sleep
        )(self._one_count if spec.kind is JobKind.COUNT_TOKENS else self._one_attempt)
        return outcome

    async def _one_attempt(self) -> Outcome:
        """One call of the LLM, from its permit to its last event."""
        permit = await self._permit()
        self._begun += 1
        self._earlier_content_s = self._last_content_s
        self.call = call = UpstreamCall(permit, Completion())
        begun_s = self._loop.time()
        outcome: Outcome | None = None
        try:
            outcome = await self._timed(
                call.run(
                    self._context.providers[permit.route.provider],
                    self._claim,
                    self._settings,
                    self._log,
                    claimed_s=self._claimed_s,
                    on_first_content=self._on_first_content,
                    on_answered=self._await_last_words,
                )
            )
        finally:
            self._close_call(call, outcome, begun_s)
        self._context.llm_state.note(outcome)
        if isinstance(outcome, Answered):
            return outcome
        if self._cannot_retract:
            outcome = outcome._replace(is_last=True)
        if outcome.is_last:
            return outcome
        if permit.is_probe and outcome.opens_circuit:
            # A circuit-breaker probe: its failure does not count against this job's attempts. Another job may probe next.
            raise Deferred(_PROBED_S, code=outcome.error.code, failures=0)
        self._failures += 1
        if outcome.error.code in _OVERLOAD:
            self._overloaded.add(permit.route.name)
            outcome = outcome._replace(has_stand_in=self._chain()[0].name not in self._overloaded)
        return outcome

    def _on_first_content(self, permit: Permit) -> None:
        self._context.governor.on_first_content(permit)
        if self._earlier_content_s is None:
            self._context.figures.first_token((self._loop.time() - self._claimed_s) * 1000)

    @property
    def _cannot_retract(self) -> bool:
        return self._log.has_published and not self._claim.spec.may_start_over

    @property
    def last_token_ms(self) -> int | None:
        """When the newest content of this claim arrived, by Redis's clock; None if none did."""
        last_s = self._last_content_s
        return None if last_s is None else self._claim.claimed_ms + int((last_s - self._claimed_s) * 1000)

    @property
    def _last_content_s(self) -> float | None:
        of_newest_s = None if self.call is None else self.call.last_content_s
        return self._earlier_content_s if of_newest_s is None else of_newest_s

    async def _one_count(self) -> Outcome:
        """One count of the request's tokens. No fallback is called: another model's count would be another number."""
        route = self._context.routes.chain_of(self._claim.spec.model)[0]
        self._route = route.name
        self._begun += 1
        begun_s = self._loop.time()
        provider = self._context.providers[route.provider]
        outcome = await self._timed(count_tokens(provider, route, self._claim, self._settings))
        self._failures += isinstance(outcome, Failure)
        self._report_attempt(outcome, begun_s)
        return outcome

    async def _permit(self) -> Permit:
        """Waits up to 2 s for room, or for a gate to open; a longer wait would waste the slot. Raises Deferred."""
        ends_s = self._loop.time() + LONGEST_WAIT_IN_SLOT_S
        while True:
            decision = await self._context.governor.permit(
                self._chain(), self._claim, attempt=self._attempt, is_retry=self._claim.failures + self._failures > 0
            )
            if isinstance(decision, Permit):
                self._route = decision.route.name
                return decision
            delay_s = decision.wait_s * random.uniform(1, 1.5)
            if decision.why in (Obstacle.SPENT, Obstacle.OTHERS) or self._loop.time() + delay_s > ends_s:
                # The job goes back to its place in the queue, where CLAIM looks at the gates. Not at once: if its flow was
                # named with other routes than our settings have, CLAIM knows no gate and would return the job at once.
                later_s = random.uniform(*_ASKED_AGAIN_S)
                if decision.why is not Obstacle.SPENT:
                    later_s = min(later_s, decision.wait_s)
                code = decision.code or "upstream_rate_limited"
                raise Deferred(later_s, code=code, failures=0, announced_s=max(later_s, decision.wait_s))
            await asyncio.sleep(delay_s)

    def _chain(self) -> list[Route]:
        """The routes to try: those that this run has not seen overloaded, or all if there is no such route."""
        chain = self._context.routes.chain_of(self._claim.spec.model)
        return [route for route in chain if route.name not in self._overloaded] or list(chain)

    async def _timed(self, call: Awaitable[Outcome]) -> Outcome:
        self._total = total = asyncio.timeout_at(self._ends_s)
        try:
            async with total:
                return await call
        except TimeoutError:
            return TIMED_OUT if total.expired() else classify(Breakage(How.UNANSWERED))

    def _await_last_words(self) -> None:
        """The answer is whole: the end of the job's own time must not discard it. The stream's own bound ends it soon."""
        if self._total.when() == self._ends_s:  # only once: a server that goes on sending gains no more time
            self._total.reschedule(max(self._ends_s, self._loop.time() + LAST_WORDS_S + _MARGIN_S))

    def _close_call(self, call: UpstreamCall, outcome: Outcome | None, begun_s: float) -> None:
        """Closes the call's row in the ledger. No outcome: it was interrupted, since the job ended or another worker has it."""
        spent = call.spent(outcome)
        self._context.figures.call_ended(call, spent.usage.output_tokens)
        first_token_ms = None if call.first_content_s is None else int((call.first_content_s - begun_s) * 1000)
        cost = self._context.governor.close_call(
            call.permit, call.ended(outcome), spent, outcome, call.allowance, first_token_ms
        )
        self._report_attempt(
            outcome,
            begun_s,
            first_token_ms=first_token_ms,
            input_tokens=spent.usage.input_tokens,
            output_tokens=spent.usage.output_tokens,
            is_estimated=spent.is_estimated,
            cost_nano_usd=cost,
        )
        if call.was_asked:
            self._cost = UNPRICED if cost is None or self._cost == UNPRICED else (self._cost or 0) + cost

    async def _before_wait(self, failure: Failure, delay_s: float) -> None:
        """Another attempt follows inside this claim."""
        self._attempt += 1
        if self._claim.spec.kind is JobKind.COUNT_TOKENS:
            return  # it has no log
        self._log.begin_attempt(
            attempts=self._attempt,
            failures=self._claim.failures + self._failures,
            retry_event=_retry_event(self._attempt, failure.error.code, delay_s),
            reset_event=msgspec.json.encode({"attempt": self._attempt, "reason": "upstream_failed"}),
        )

    async def finish(self, outcome: Outcome) -> RunEnd:
        """Writes how the job ended, with its terminal event."""
        ending = self._ending_of(outcome)
        if await self._log.finish(ending, cost=self._cost) is Finished.REFUSED:
            return self.lost()
        self._cost = None
        self._context.governor.retry_closing()
        end = RunEnd.SUCCEEDED if ending.step is Step.SUCCEED else RunEnd.FAILED
        self._report(end, ending)
        return end

    def _ending_of(self, outcome: Outcome) -> Ending:
        match outcome:
            case Answered(result, usage, first_content_s):
                first_token_ms = (
                    None if first_content_s is None else self._claim.claimed_ms + int(first_content_s * 1000)
                )
                return Ending(Step.SUCCEED, result, usage, first_token_ms)
            case Failure(error):
                return Ending(Step.FAIL, error=error, last_token_ms=self.last_token_ms)

    async def defer(self, wait: Deferred) -> RunEnd:
        """The job goes back to the queue until its next attempt may be made."""
        await self._log.land()  # this also writes what earlier attempts of this claim add to the record
        release = partial(
            self._context.writer.queue.release,
            self._claim,
            reason="upstream_failed",
            delay_s=wait.delay_s,
            failures=wait.failures,
            retry_event=_retry_event(self._begun + 1, wait.code, wait.announced_s),
            cost=self._cost,
            attempts=self._begun,
            last_token_ms=self.last_token_ms,
        )
        if not await self._context.writer.outage.outlast(release):
            return self.lost()
        self._cost = None
        self._context.governor.retry_closing()
        self._context.logger.info("job_deferred", **self._facts(), delay_s=round(wait.delay_s, 3), code=wait.code)
        return RunEnd.DEFERRED

    def charge(self) -> None:
        """Charges the calls that no FINISH or RELEASE of ours has charged: the job has ended, or another worker has it."""
        if self._cost is not None:
            claim, spec = self._claim, self._claim.spec
            self._context.governor.charge(
                claim.id,
                self._cost,
                tenant=claim.tenant,
                key_id=spec.key_id,
                end_user=spec.end_user or "",
                epoch=claim.epoch,
                last_token_ms=self.last_token_ms,
            )

    def report_start(self) -> None:
        """Logs which worker runs a job: the first question when one is stuck."""
        self._context.logger.info(
            "job_started",
            job_id=self._claim.id,
            attempt=self._attempt,
            prompt_hash=self._claim.spec.prompt_hash,
            model=self._claim.spec.model,
            queued_ms=self._claim.claimed_ms - self._claim.created_ms,
        )

    def _report_attempt(self, outcome: Outcome | None, begun_s: float, **usage: object) -> None:
        """Logs how this attempt ended, since the job may go on. Not the upstream's message: it may quote the prompt."""
        failure = outcome if isinstance(outcome, Failure) else None
        ended = "interrupted" if outcome is None else "succeeded" if failure is None else failure.error.code
        self._context.logger.info(
            "attempt_ended",
            **self._facts(),
            route=self._route,
            outcome=ended,
            upstream_status=failure and failure.error.upstream_status,
            how=failure and failure.how and failure.how.name.lower(),
            is_retryable=failure and failure.is_retryable and not self._cannot_retract,
            took_ms=int((self._loop.time() - begun_s) * 1000),
            **usage,
        )

    def lost(self) -> RunEnd:
        """The run's writes were refused: another worker has the job, or it has ended."""
        self._context.logger.info("claim_lost", **self._facts())
        return RunEnd.LOST

    def _report(self, end: RunEnd, ending: Ending) -> None:
        usage = ending.usage
        self._context.logger.info(
            f"job_{end}",
            **self._facts(),
            route=self._route,
            input_tokens=usage.input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            first_token_ms=ending.first_token_ms and ending.first_token_ms - self._claim.claimed_ms,
            code=ending.error.code if ending.error else None,
            upstream_status=ending.error.upstream_status if ending.error else None,
        )

    def _facts(self) -> dict[str, str | int]:
        return {
            "job_id": self._claim.id,
            "attempt": self._attempt,
            "prompt_hash": self._claim.spec.prompt_hash,
            "model": self._claim.spec.model,
            "running_ms": int((self._loop.time() - self._claimed_s) * 1000),
        }


def _retry_event(attempt: int, code: str, delay_s: float) -> bytes:
    return msgspec.json.encode({"attempt": attempt, "reason": code, "delay_ms": int(delay_s * 1000)})
