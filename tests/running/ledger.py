"""Compares the ledger with the ground truth: the simulator's own record of its calls."""

import itertools
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import NamedTuple, Self

from shared.job import Usage
from shared.store import redis_keys
from shared.store.runtime import Runtime
from shared.usage import UsageSums
from simulator.record import Call
from tests.running.crew import Crew
from tests.support.usage import read_usage

_LATE = 12
"""How many tokens the simulator may have sent unread, to a client that was closing or dead."""

_UNREAD = {"error", "bad-json", "restart", "no-index", "garbage", "no-stop-reason", "no-start", "rst", "bad-chunk"}
"""Faults after which the client stops reading at once."""


class Row(NamedTuple):
    """One call in the ledger."""

    id: str
    tenant: str
    key: str
    job_id: str
    attempt: int
    route: str
    model: str
    counted: str
    """The model for which it is counted."""
    opened_ms: int
    ended: str | None
    """None while the row is open."""
    is_estimated: bool
    input_estimate: int
    usage: Usage
    cost_nano_usd: int | None

    @classmethod
    def of(cls, call_id: str, fields: dict[str, str]) -> Self:
        """From the row's fields in Redis."""
        is_unpriced = fields.get("unpriced") != "0"
        return cls(
            id=call_id,
            tenant=fields["tenant"],
            key=fields["key"],
            job_id=fields["job"],
            attempt=int(fields["attempt"]),
            route=fields["route"],
            model=fields["model"],
            counted=fields.get("counted", fields["model"]),
            opened_ms=int(fields["opened_ms"]),
            ended=fields.get("ended"),
            is_estimated=fields.get("estimated") == "1",
            input_estimate=int(fields["input_estimate"]),
            usage=Usage(**{name: int(fields.get(name, 0)) for name in Usage.__struct_fields__}),
            cost_nano_usd=None if is_unpriced else int(fields["cost_nano_usd"]),
        )

    @property
    def day(self) -> date:
        """The day for which it is counted."""
        return datetime.fromtimestamp(self.opened_ms / 1000, UTC).date()

    @property
    def sums(self) -> UsageSums:
        """Its part of its tenant's usage."""
        return UsageSums(
            calls=1,
            estimated_calls=int(self.is_estimated),
            input_tokens=self.usage.input_tokens,
            output_tokens=self.usage.output_tokens,
            cache_creation_input_tokens=self.usage.cache_creation_input_tokens,
            cache_read_input_tokens=self.usage.cache_read_input_tokens,
            cost_nano_usd=self.cost_nano_usd or 0,
            unpriced_calls=int(self.cost_nano_usd is None),
        )


async def all_rows(runtime: Runtime) -> list[Row]:
    """Every row, oldest first."""
    call = runtime._commands.call
    names: list[bytes] = await call("KEYS", f"{redis_keys.GLOBAL}call:*")
    replies = [call("HGETALL", name) for name in names]
    rows = []
    for name, reply in zip(names, replies, strict=True):
        found: list[bytes] = await reply
        fields = {field.decode(): value.decode() for field, value in zip(found[::2], found[1::2], strict=True)}
        rows.append(Row.of(name.decode().rpartition(":")[2], fields))
    return sorted(rows, key=lambda row: (row.opened_ms, row.attempt))


async def rows_of(crew: Crew, job_id: str) -> list[Row]:
    """The rows of one job, in order."""
    return [row for row in await all_rows(crew.runtime) if row.job_id == job_id]


async def assert_ledger_matches(crew: Crew) -> None:
    """Rows and calls match one to one; every row is closed, with the upstream's counts or an estimate marked as such.

    The tenant's usage and the job's cost are the sums of the rows.
    """
    rows = await all_rows(crew.runtime)
    by_job = defaultdict(list)
    for row in rows:
        by_job[row.job_id].append(row)
    assert by_job.keys() <= set(crew.jobs)
    for job_id in crew.jobs:
        calls = [call for call in crew.calls(job_id) if call.endpoint != "count_tokens"]  # those have no row
        assert_rows_match(by_job[job_id], calls, crew.scripts.get(job_id, ""))
        await assert_cost_is_that_of(crew, job_id, by_job[job_id])
    await assert_usage_is_that_of(crew.runtime, rows)


def assert_rows_match(rows: list[Row], calls: list[Call], script: str) -> None:
    """The rows and calls of one job match one to one, in order."""
    shown = "\n".join(map(str, itertools.chain(rows, calls)))
    assert len(rows) == len(calls), f"the ledger has {len(rows)} rows for {len(calls)} calls:\n{shown}"
    for row, call in zip(rows, calls, strict=True):
        assert row.model == call.model, shown
        assert_row_matches(row, call, script)


def assert_row_matches(row: Row, call: Call, script: str) -> None:
    """The tokens are those that the upstream reported, and zero if it refused."""
    shown = f"{row}\n{call}"
    assert row.ended is not None, f"an open row: {shown}"
    usage = row.usage
    if call.status is not None and call.status != 200:
        assert (usage, row.is_estimated) == (Usage(), False), shown
    elif row.ended == "succeeded" and not row.is_estimated:
        assert (usage.input_tokens, usage.output_tokens) == (call.input_tokens, call.output_tokens), shown
    else:
        assert row.is_estimated, shown
        assert usage.input_tokens in {call.input_tokens, row.input_estimate}, shown
        assert usage.input_tokens > 0, shown
        least, most = (estimate_of(script, call, heard) for heard in (least_heard(call), call.tokens_sent))
        if least is not None and most is not None:
            assert min(least, call.tokens_sent) <= usage.output_tokens <= max(1, most), shown


def least_heard(call: Call) -> int:
    """The smallest number of sent tokens that the worker must have read."""
    if _UNREAD & set(call.faults):  # tokens in the same piece are not read, and the simulator may send more after it
        return 0
    return call.tokens_sent - (1 if call.ended == "fault" else _LATE + _sent_late(call))


def _sent_late(call: Call) -> int:
    """How many tokens the simulator sent at once after the event loop, which is the worker's too, had stood still."""
    if call.first_token_s is None or call.ended_s is None:
        return 0
    return int(call.tokens_sent * min(1, call.max_late_s / max(1e-6, call.ended_s - call.first_token_s)))


def estimate_of(script: str, call: Call, tokens: int) -> int | None:
    """The estimate for so many tokens of an answer: one per delta or per four characters. None: not a plain answer."""
    if any(word in script for word in ("text=", "blocks=", "echo:", "big-line=")):
        return None
    said = sum(len(f"{call.nonce}.{call.nonce_call}.{index} ") for index in range(max(0, tokens)))
    return max(0, tokens, said // 4)


async def assert_cost_is_that_of(crew: Crew, job_id: str, rows: Iterable[Row]) -> None:
    """None if a price is unknown, or if there was no call."""
    costs = [row.cost_nano_usd for row in rows]
    record = await crew.runtime._commands.call("HMGET", redis_keys.job(job_id), "cost_nano_usd", "unpriced")
    cost, unpriced = (int(value or 0) for value in record)
    assert bool(unpriced) == (None in costs), f"{job_id} is unpriced, or not: {costs}"
    assert cost == sum(cost or 0 for cost in costs), f"{job_id} cost {cost}, its calls {costs}"


async def assert_usage_is_that_of(runtime: Runtime, rows: Iterable[Row]) -> None:
    """Compares by tenant, day, model and key."""
    expected: dict[tuple[str, date, str, str | None], UsageSums] = {}
    for row in rows:
        name = (row.tenant, row.day, row.counted, row.key or None)
        expected[name] = expected.get(name, UsageSums()) + row.sums
    if not expected:
        return
    first, last = min(name[1] for name in expected), max(name[1] for name in expected)
    shown = {
        (tenant, row.day, row.model, row.key): row.sums
        for tenant in {name[0] for name in expected}
        for row in await read_usage(runtime, tenant, first, last)
    }
    assert shown == expected
