"""Runs many cases, shrinks each finding to the smallest stream that shows it, and makes the table."""

import asyncio
import copy
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace

from tests.mutations.case import Case, a_case, needs_socket
from tests.mutations.frame import Cuts, Dialect, Frame, Stream
from tests.mutations.judgement import SILENT, Finding, Kind, findings_of
from tests.mutations.oracle import Expected, Verdict, expected_of
from tests.mutations.virtual_time import VirtualTimeLoop
from tests.mutations.worker_under_test import Observed, WorkerUnderTest, run_by_socket, socket_worker

Run = Callable[[Stream], Awaitable[Observed]]


@dataclass
class Group:
    """Cases with the same finding."""

    kind: Kind
    dialect: Dialect
    labels: frozenset[str]
    number: int
    """The number of the first case."""
    detail: str
    smallest: Stream
    count: int = 1


@dataclass
class Report:
    """The result of a campaign."""

    seed: int
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    succeeded: Counter[Verdict] = field(default_factory=Counter)
    kinds: Counter[Kind] = field(default_factory=Counter)
    groups: list[Group] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def count(self) -> int:
        """The number of streams."""
        return self.verdicts.total()

    def table(self) -> str:
        """The figures, then the groups, largest first."""
        certain = self.verdicts[Verdict.CERTAIN]
        share = 100 * self.succeeded[Verdict.CERTAIN] / certain if certain else 100.0
        lines = [
            f"seed {self.seed}: {self.count} streams in {self.took_s:.1f} s",
            *(f"  {verdict:9} {self.verdicts[verdict]:7}" for verdict in Verdict),
            f"  certain that succeed          {share:.3f} %   (must be 100)",
            f"  doubtful that succeed         {self.kinds[Kind.SUCCEEDED]}   (must be 0)",
            f"  silent differences            {sum(self.kinds[kind] for kind in SILENT)}   (must be 0)",
            f"  failures that name nothing    {self.kinds[Kind.UNNAMED]}   (must be 0)",
            f"  either: {self.succeeded[Verdict.EITHER]} succeeded",
        ]
        for kind in Kind:
            groups = sorted((g for g in self.groups if g.kind is kind), key=lambda group: -group.count)
            if groups:
                lines += ["", f"{kind}: {self.kinds[kind]} cases, {len(groups)} groups"]
                lines += [_line_of(group) for group in groups]
        return "\n".join(lines)


def _line_of(group: Group) -> str:
    what = ", ".join(sorted(group.labels)) or "(a valid stream)"
    return f"  {group.count:6}  {group.dialect}: {what}\n          {group.detail}   [case {group.number}]"


class Campaign:
    """Runs cases by number."""

    def __init__(self, seed: int, *, shrinks: bool = True) -> None:
        self.report = Report(seed)
        self._shrinks = shrinks

    def run(self, numbers: Iterable[int]) -> Report:
        """Runs scripted cases first, on a virtual clock, and then those that need a socket."""
        begun_s = time.perf_counter()
        by_socket: list[int] = []
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(self._by_script(numbers, by_socket))
        if by_socket:
            with asyncio.Runner() as runner:
                runner.run(self._by_socket(by_socket))
        self.report.took_s = time.perf_counter() - begun_s
        return self.report

    async def _by_script(self, numbers: Iterable[int], by_socket: list[int]) -> None:
        worker = WorkerUnderTest.of_scripts()
        for number in numbers:
            case = a_case(self.report.seed, number)
            stream = case.stream()
            if needs_socket(stream):
                by_socket.append(number)
            else:
                await self._judge(number, case, stream, worker.run)

    async def _by_socket(self, numbers: Iterable[int]) -> None:
        async with socket_worker() as worker:
            for number in numbers:
                case = a_case(self.report.seed, number)
                await self._judge(number, case, case.stream(), lambda stream: run_by_socket(worker, stream))

    async def _judge(self, number: int, case: Case, stream: Stream, run: Run) -> None:
        expected = expected_of(stream)
        observed = await run(stream)
        self.report.verdicts[expected.verdict] += 1
        self.report.succeeded[expected.verdict] += observed.has_succeeded
        for kind, detail in {
            finding.kind: finding.detail for finding in findings_of(stream, expected, observed)
        }.items():
            self.report.kinds[kind] += 1
            await self._group(number, case, Finding(kind, detail), run)

    async def _group(self, number: int, case: Case, finding: Finding, run: Run) -> None:
        labels = case.stream().all_labels
        for group in self.report.groups:
            if group.kind is finding.kind and group.dialect is case.dialect and group.labels and group.labels <= labels:
                group.count += 1
                return
        smallest, detail = case.stream(), finding.detail
        if self._shrinks:
            smallest, detail = await shrunk(case, finding, run)
        found = smallest.all_labels
        for group in self.report.groups:
            if (group.kind, group.dialect, group.labels) == (finding.kind, case.dialect, found):
                group.count += 1
                return
        self.report.groups.append(Group(finding.kind, case.dialect, found, number, detail, smallest))


# --- the smallest stream that shows it --------------------------------------------------------------------------------


async def shrunk(case: Case, finding: Finding, run: Run) -> tuple[Stream, str]:
    """Removes steps, then frames, then pieces, as long as the kind of finding stays the same."""
    detail = finding.detail

    async def shows(stream: Stream) -> bool:
        nonlocal detail
        try:
            expected = expected_of(stream)
        except ValueError:
            return False
        observed = await run(copy.deepcopy(stream))
        for kind, found in findings_of(stream, expected, observed):
            if kind is finding.kind:
                detail = found
                return True
        return False

    steps = list(case.steps)
    for step in list(reversed(steps)):
        fewer = [other for other in steps if other is not step]
        if await shows(replace(case, steps=tuple(fewer)).stream()):
            steps = fewer
    stream = replace(case, steps=tuple(steps)).stream()
    labels = stream.all_labels
    await shows(stream)
    wanted = detail if finding.kind in (Kind.UNNAMED, Kind.FAILED) else ""

    async def still_shows(stream: Stream) -> bool:
        """Whether the same finding remains with all mutations: a stream without its beginning has other findings."""
        return stream.all_labels == labels and await shows(stream) and (not wanted or detail == wanted)

    for cuts in (Cuts.FRAMES, Cuts.ONE):
        if stream.cuts is not cuts and await still_shows(_with(stream, cuts=cuts)):
            stream = _with(stream, cuts=cuts)
            break
    for _ in range(2):
        for frame in list(stream.frames):
            at = _place_of(frame, stream.frames)
            if len(stream.frames) < 2 or at is None:
                continue
            for instead in ([], [frame.original] if frame.original is not None and frame.can_undo else []):
                fewer_frames = [*stream.frames[:at], *instead, *stream.frames[at + 1 :]]
                if (fewer_frames or stream.response) and await still_shows(_with(stream, frames=fewer_frames)):
                    stream = _with(stream, frames=fewer_frames)
                    break
    if not await shows(stream):
        detail = finding.detail
    return stream, detail


def _with(stream: Stream, **members: object) -> Stream:
    return replace(stream, **members)  # type: ignore[arg-type]


def _place_of(frame: Frame, frames: list[Frame]) -> int | None:
    return next((at for at, other in enumerate(frames) if other is frame), None)


def text_of(stream: Stream) -> str:
    """The stream in a readable form."""
    lines = [f"{stream.dialect}, {stream.seed_name}; {stream.cuts.value}; then {stream.end.value}"]
    if stream.response is not None:
        given = stream.response
        lines.append(
            f"HTTP {given.status}, content-type {given.content_type}, content-encoding {given.encoding or '-'}"
        )
        if given.body is not None:
            return "\n".join([*lines, repr(given.body)])
    for piece in stream.pieces():
        pause = f"   ({piece.pause_s:g} s later)" if piece.pause_s else ""
        lines.append(f"  {piece.data!r}{pause}")
    return "\n".join(lines)


def smallest_of(group: Group, seed: int, expected_by: Callable[[Stream], Expected] = expected_of) -> str:
    """A group's smallest stream, and the command that repeats it."""
    expected = expected_by(group.smallest)
    return "\n".join(
        [
            f"{group.kind}  (x{group.count})",
            f"  done to it: {', '.join(sorted(group.labels)) or 'nothing'}",
            f"  expected:   {expected.verdict}",
            f"  found:      {group.detail}",
            f"  again:      python -m tests.mutations --seed {seed} --case {group.number}",
            *("  " + line for line in text_of(group.smallest).splitlines()),
        ]
    )
