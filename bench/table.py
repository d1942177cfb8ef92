"""Renders samples as a table of text: figures, targets, met or missed.

Every row has its unit and its target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench import systems
from bench.measure import Samples


@dataclass(frozen=True, slots=True)
class Row:
    key: str  # the row's name in the samples
    label: str
    unit: str
    bound: Literal["at most", "at least"]
    target: float | None  # for tokenspool; None: no target
    anchor: tuple[str, float] | None = None
    """A column of the same run to compare with, and its figure on the machine for which the target was set."""

    def is_met(self, value: float) -> bool:
        if self.target is None:
            return True
        return value <= self.target if self.bound == "at most" else value >= self.target


ROWS = (
    Row("first-token", "added time to first token, one client, p50", "ms", "at most", 3, (systems.IN_REQUEST, 2.9)),
    Row("cpu", "CPU per request, all processes of the system", "ms", "at most", 4, (systems.IN_REQUEST, 11.4)),
    Row("requests", "requests/s, 200 clients", "", "at least", 165),
    Row("burst", "first token p50, 200 clients at once", "ms", "at most", 150, (systems.IN_REQUEST, 1_336)),
    Row("delivery-p50", "token delivery p50, 200 clients", "ms", "at most", 20),
    Row("delivery-p99", "token delivery p99, 200 clients", "ms", "at most", 60),
    Row("submits", "submits/s on one API core, with a key and limits", "", "at least", 3_000, ("echo endpoint", 6_890)),
    Row("submits-open", "the same without keys and limits", "", "at least", None),
    Row("memory", "memory per idle SSE client, one process", "KB", "at most", 40),
    Row("connections", "connections to Redis meanwhile", "", "at most", 5),
    Row("batch-accept", "a batch accepted (100,000 requests; --quick 5,000)", "s", "at most", 10),
    Row("batch-memory", "API memory above idle meanwhile", "MB", "at most", 150),
    Row("batch-items", "its items/s on two workers, upstream at no delay", "", "at least", None),
    Row("batch-wait", "waiting time p99 of other jobs meanwhile, compared with before", "x", "at most", 2),
    Row("batch-results", "result lines/s, read whole", "", "at least", None),
    Row("batch-results-memory", "API memory above idle meanwhile", "MB", "at most", 50),
)
COLUMNS = (systems.ALONE, systems.IN_REQUEST, systems.ARQ, systems.TOKENSPOOL)


def render(samples: Samples) -> list[str]:
    columns = [
        column
        for column in COLUMNS
        if column == systems.TOKENSPOOL or any(column in values for values in samples.values.values())
    ]
    lines = [["", *columns, "target", ""]]
    for row in ROWS:
        if row.key not in samples.values:
            continue
        cells = [figure(samples.median(row.key, column), row.unit) for column in columns]
        measured = samples.median(row.key, systems.TOKENSPOOL)
        verdict = "" if measured is None or row.target is None else "met" if row.is_met(measured) else "MISSED"
        sign = "≤" if row.bound == "at most" else "≥"
        target = "" if row.target is None else f"{sign} {figure(row.target, row.unit)}"
        lines.append([row.label, *cells, target, verdict])
    return [*_aligned(lines), "", *_notes(samples)]


def figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 or value == int(value) else 1
    return f"{value:,.{digits}f} {unit}".strip()


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in {0, len(line) - 1} else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _relative(samples: Samples) -> list[str]:
    """The figures relative to a column of the same run, which a slow hour of the machine does not change."""
    parts = []
    for row in ROWS:
        if row.anchor is None or row.target is None:
            continue
        column, then = row.anchor
        measured, now = samples.median(row.key, systems.TOKENSPOOL), samples.median(row.key, column)
        if measured is not None and now:
            share, target = measured / now, row.target / then
            is_met = row.is_met(share * then)
            parts.append(f"{row.key} {share:.2f} ({'met' if is_met else 'MISSED'}: target {target:.2f} of {column})")
    return ["relative to the same run: " + ", ".join(parts)] if parts else []


def _notes(samples: Samples) -> list[str]:
    """The lines below the table: references, CPU by process, and notes."""
    lines = [*_relative(samples)]
    for key, label in (("submits", "submits/s"), ("memory", "KB per idle SSE client"), ("batch-items", "jobs/s")):
        references = {
            column: samples.median(key, column) for column in samples.values.get(key, {}) if column not in COLUMNS
        }
        if references:
            listed = ", ".join(f"{column} {figure(value, '')}" for column, value in references.items())
            lines.append(f"{label}, references: {listed}")
    for column in COLUMNS[1:]:
        roles = {
            key.removeprefix("cpu of "): samples.median(key, column)
            for key in samples.values
            if key.startswith("cpu of ") and column in samples.values[key]
        }
        if len(roles) > 1:
            listed = ", ".join(f"{role} {figure(value, 'ms')}" for role, value in roles.items())
            lines.append(f"CPU per request of {column}: {listed}")
    return [*lines, *samples.notes]
