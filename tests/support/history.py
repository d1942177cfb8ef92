"""Records what clients saw in a chaos test, and checks the invariants, whatever was killed.

I1 every acknowledged job ends exactly once. I2 terminal states are final, and states never go back. I4 one
Idempotency-Key makes one job. I5 followers see every event once, in order. I6 the result is the streamed text of one
attempt of this job. I7 an older claim never writes after a newer one. I9 there are no more calls of the LLM than
allowed attempts. I14 no queue or lease holds anything of an ended job.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.events import Event
from shared.store.runtime import Runtime
from tests.support.deployment import CANARY_API_KEY, CANARY_METADATA, CANARY_PROMPT, Deployment
from tests.support.follower import TERMINAL, Cut, Follower, ask
from tests.support.sse_frames import Frame
from tests.support.story import assert_saw, id_of, text_of_log

_RANKS = {"queued": 0, "running": 0} | dict.fromkeys(TERMINAL, 1)
"""A job may go from running back to queued, but never back from a terminal state."""


@dataclass
class Submitted:
    """A job whose submit was acknowledged."""

    id: str
    nonce: str
    tenant: str
    allowed_calls: int
    acknowledged_s: float
    cancelled_s: float | None = None
    """When its cancel was acknowledged."""


@dataclass
class History:
    """Records one test."""

    deployment: Deployment
    name: str
    jobs: dict[str, Submitted] = field(default_factory=dict)
    followers: list[Follower] = field(default_factory=list)
    tasks: list[asyncio.Task[Follower]] = field(default_factory=list)
    states: dict[str, list[tuple[float, float, str]]] = field(default_factory=dict)
    """By job, for each read: when it began, when it ended, and the status."""
    by_key: dict[str, set[str]] = field(default_factory=dict)
    refused: Counter[int] = field(default_factory=Counter)
    """Refused submits by HTTP status; 0 for a broken connection."""
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def submit(
        self,
        words: str = "",
        *,
        url: str | None = None,
        tenant: str = "default",
        key: str | None = None,
        nonce: str | None = None,
        allowed_calls: int = 1,
        model: str | None = None,
        **job: Any,
    ) -> Submitted | None:
        """Submits a job; None if it was refused or the connection broke."""
        nonce = nonce or f"{self.name}-{next(self._numbers)}"
        headers = {"X-Tenant": tenant, "X-Api-Key": CANARY_API_KEY} | ({"Idempotency-Key": key} if key else {})
        body: dict[str, Any] = {
            "prompt": f"{CANARY_PROMPT} nonce={nonce} {words}",
            "job": {"metadata": {"note": CANARY_METADATA}, **job},
        }
        if model:
            body["model"] = model
        try:
            status, answer, _ = await ask(
                url or random.choice(self.deployment.urls), "/v1/jobs", method="POST", headers=headers, body=body
            )
        except (OSError, Cut):
            self.refused[0] += 1
            return None
        if status not in (200, 202):
            self.refused[status] += 1
            return None
        if key:
            self.by_key.setdefault(f"{tenant} {key}", set()).add(answer["id"])
        return self.jobs.setdefault(
            answer["id"], Submitted(answer["id"], nonce, tenant, allowed_calls, time.monotonic())
        )

    async def submit_many(self, count: int, words: str = "", **more: Any) -> list[Submitted]:
        """Submits ``count`` jobs, of which none may be refused."""
        found = await asyncio.gather(*[self.submit(words, **more) for _ in range(count)])
        jobs = [job for job in found if job is not None]
        assert len(jobs) == count, self.refused
        return jobs

    def follow(self, job: Submitted, *, form: str = "text", urls: Sequence[str] = ()) -> asyncio.Task[Follower]:
        """Starts a follower that reads to the end, over all APIs in turn."""
        follower = Follower(list(urls) or self.deployment.urls, job.id, form=form, tenant=job.tenant)
        self.followers.append(follower)
        task = asyncio.create_task(follower.follow(), name=f"follower of {job.nonce}")
        self.tasks.append(task)
        return task

    async def read(self, job: Submitted, *, url: str | None = None) -> dict[str, Any] | None:
        """The job's current state, or None if no API responds."""
        began_s = time.monotonic()
        try:
            status, answer, _ = await ask(
                url or random.choice(self.deployment.urls), f"/v1/jobs/{job.id}", headers={"X-Tenant": job.tenant}
            )
        except (OSError, Cut):
            return None
        if status == 503:
            return None
        assert status == 200, f"{job.id} is lost: {status}"
        self.states.setdefault(job.id, []).append((began_s, time.monotonic(), answer["status"]))
        found: dict[str, Any] = answer
        return found

    async def cancel(self, job: Submitted) -> dict[str, Any]:
        """Cancels the job."""
        status, answer, _ = await ask(
            self.deployment.urls[0], f"/v1/jobs/{job.id}/cancel", method="POST", headers={"X-Tenant": job.tenant}
        )
        assert status == 200
        if answer["status"] == "cancelled":
            job.cancelled_s = time.monotonic()
        found: dict[str, Any] = answer
        return found

    async def all_ended(self, *, timeout_s: float = 30) -> dict[str, dict[str, Any]]:
        """Waits for the end of every job; returns them by id."""
        ended: dict[str, dict[str, Any]] = {}

        async def look() -> bool:
            missing = [job for job in self.jobs.values() if job.id not in ended]
            for job, answer in zip(missing, await asyncio.gather(*map(self.read, missing)), strict=True):
                if answer is not None and answer["status"] in TERMINAL:
                    ended[job.id] = answer
            return len(ended) == len(self.jobs)

        deadline_s = time.monotonic() + timeout_s
        while not await look():
            if time.monotonic() > deadline_s:
                left = [await self.read(job) for job in self.jobs.values() if job.id not in ended]
                raise AssertionError(f"after {timeout_s} s {len(left)} jobs have not ended: {left[:3]}")
            await asyncio.sleep(0.05)
        return ended

    async def all_followed(self, *, timeout_s: float = 30) -> None:
        """Waits until every follower has seen the end of its job."""
        if self.tasks:
            _, late = await asyncio.wait(self.tasks, timeout=timeout_s)
            for task in self.tasks:
                if task not in late:
                    task.result()
            lost = [follower for follower in self.followers if not follower.has_ended]
            assert not lost, f"{len(lost)} followers saw no end; one saw {lost[0].ids[-3:]} of {lost[0].job_id}"

    async def check(self, *, timeout_s: float = 30, followers: bool = True) -> dict[str, dict[str, Any]]:
        """Waits for the end of all jobs and followers, then checks all invariants. Returns the ended jobs."""
        ended = await self.all_ended(timeout_s=timeout_s)
        if followers:
            await self.all_followed(timeout_s=timeout_s)
        calls: dict[str, list[Any]] = {}
        for call in await self.deployment.calls():
            calls.setdefault(call.nonce, []).append(call)
        async with self.deployment.runtime() as runtime:
            for job in self.jobs.values():
                log = await runtime.log.read(job.id, count=100_000)
                self._check_end(job, ended[job.id], log)
                self._check_result(job, ended[job.id], log)
                self._check_calls(job, ended[job.id], calls.get(job.nonce, []))
                for follower in self.followers:
                    if follower.job_id == job.id:
                        self._check_follower(follower, ended[job.id], log)
            for url in self.deployment.urls:  # I2: every API says the same
                for again in await asyncio.gather(*[self.read(job, url=url) for job in self.jobs.values()]):
                    assert again is None or again == ended[again["id"]]
            await self._check_bookkeeping(runtime)
        self._check_states()
        for key, ids in self.by_key.items():
            assert len(ids) == 1, f"I4: {key} made {ids}"
        return ended

    def _check_end(self, job: Submitted, ended: dict[str, Any], log: Sequence[Event]) -> None:
        ends = [event for event in log if event.is_terminal]
        if log:
            assert [event.name for event in ends] == [ended["status"]], f"I1: {job.nonce} ended {ends}"
            assert log[-1] == ends[0], f"I2: {job.nonce}: something behind its end"
        epochs = itertools.groupby(log, key=lambda event: event.id.epoch if event.id else -1)
        for epoch, events in epochs:
            seqs = [event.id.seq for event in events if event.id]
            assert seqs == list(range(len(seqs))), f"I7: {job.nonce}: epoch {epoch} has {seqs}"

    def _check_result(self, job: Submitted, ended: dict[str, Any], log: Sequence[Event]) -> None:
        if ended["status"] != "succeeded":
            assert ended["result"] is None
            return
        text = ended["result"]["text"]
        assert text == text_of_log(log), f"I6: {job.nonce}: the result is not what was streamed"
        pieces = [piece.rsplit(".", 2) for piece in text.split(" ") if piece]
        assert {piece[0] for piece in pieces} <= {job.nonce}, f"I6: {job.nonce} has text of another job"
        assert len({piece[1] for piece in pieces}) == 1, f"I6: {job.nonce} has text of two attempts"
        assert [int(piece[2]) for piece in pieces] == list(range(len(pieces))), f"I6: {job.nonce}: {text}"
        assert ended["usage"]["output_tokens"] == len(pieces), f"I6: {job.nonce}: usage"

    def _check_calls(self, job: Submitted, ended: dict[str, Any], calls: Sequence[Any]) -> None:
        assert len(calls) <= job.allowed_calls, f"I9: {job.nonce}: {len(calls)} calls, {job.allowed_calls} allowed"
        assert len(calls) <= ended["attempts"], f"I9: {job.nonce}: {len(calls)} calls in {ended['attempts']} attempts"
        if job.cancelled_s is not None:
            assert ended["status"] == "cancelled"
            assert all(call.started_s <= job.cancelled_s for call in calls), f"I9: {job.nonce} called behind its cancel"

    def _check_follower(self, follower: Follower, ended: dict[str, Any], log: Sequence[Event]) -> None:
        if not log:  # the job never ran: followers see only its end
            assert [frame.event for frame in follower.frames if frame.id] == [ended["status"]]
            return
        first = next(frame for frame in follower.frames if frame.id is not None)
        epoch = id_of(first).epoch
        assert_saw(follower, [event for event in log if event.id and event.id.epoch >= epoch])
        if ended["status"] == "succeeded":
            assert follower.text == ended["result"]["text"], f"I6: {follower.job_id}"
        assert _is_start(first, ended), f"I5: {follower.job_id} began with {first}"

    def _check_states(self) -> None:
        for job_id, reads in self.states.items():
            for (_, ended_s, state), (began_s, _, later) in itertools.pairwise(sorted(reads)):
                if ended_s < began_s:
                    assert _RANKS[state] <= _RANKS[later], f"I2: {job_id} was {state}, then {later}"
                    assert _RANKS[state] == 0 or state == later, f"I2: {job_id} was {state}, then {later}"

    async def _check_bookkeeping(self, runtime: Runtime) -> None:
        """I14."""
        for kind in ("waiting", "deferred", "running"):
            for job in self.jobs.values():
                assert await runtime._commands.call("ZSCORE", f"ts:{{0}}:{kind}", job.id) is None, (
                    f"{job.nonce}: {kind}"
                )


def _is_start(first: Frame, ended: dict[str, Any]) -> bool:
    return first.event == "started" or first.event == ended["status"]
