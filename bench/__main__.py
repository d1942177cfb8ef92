"""`python -m bench`: measures every row of `table`, prints the table and writes the figures to a file.

It ends every process that it started, also on Ctrl-C, on SIGTERM and at its own deadline. The exit status
is 0 when every requested row was measured, whether or not a target was met; it is 1 when requests
failed, because such a row has no figure.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import uvloop

from bench import measure, systems, table
from bench.batch import batch
from bench.connection import Broken
from bench.machine import describe, machine
from bench.processes import REPOSITORY, ProcessDown
from bench.table import figure

DEADLINE_S = 1800
LOUD_SHARE = 0.15  # of a core: if other processes use more, the figures are not to be quoted
HISTORY = REPOSITORY / ".tokenspool" / "bench"
MEASUREMENTS = ("first-token", "load", "burst", "submits", "followers", "batch")
SYSTEMS = {"in-request": systems.IN_REQUEST, "arq": systems.ARQ, "tokenspool": systems.TOKENSPOOL}


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    signal.signal(signal.SIGTERM, _end_like_ctrl_c)
    signal.signal(signal.SIGALRM, _end_like_ctrl_c)  # the deadline
    signal.alarm(DEADLINE_S)
    _raise_open_files()
    # A garbage collection in the load client would count as a delay of the measured system.
    gc.disable()

    effort = measure.QUICK if arguments.quick else measure.Effort()
    if arguments.rounds is not None:
        effort = dataclasses.replace(effort, rounds=arguments.rounds)
    only = arguments.only or list(MEASUREMENTS)
    samples = measure.Samples()
    start_s = time.monotonic()
    try:
        names = [name for name in SYSTEMS if name not in arguments.without and (name != "arq" or arguments.with_arq)]
        failures = _measure(only, names, effort, samples)
    except KeyboardInterrupt:
        _say("interrupted; everything is stopped")
        return 130
    this_machine = machine()
    _say("")
    for line in [*table.render(samples), *_trust(samples), *describe(this_machine)]:
        print(line)
    path = _keep(samples, effort, this_machine)
    print(f"{time.monotonic() - start_s:.0f} s; every round's figures: {path.relative_to(REPOSITORY)}")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the figures of the README.")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="this measurement (may be repeated)")
    parser.add_argument("--rounds", type=int, help="interleaved rounds of each measurement; medians are shown")
    parser.add_argument("--quick", action="store_true", help="one short round of each, for a first look")
    parser.add_argument(
        "--without", action="append", choices=SYSTEMS, default=[], help="leave this system out (may be repeated)"
    )
    parser.add_argument("--with-arq", action="store_true", help="add the column of arq with its defaults")
    return parser.parse_args()


def _measure(only: Sequence[str], names: Sequence[str], effort: measure.Effort, samples: measure.Samples) -> list[str]:
    with_tokenspool = "tokenspool" in names
    streamed: dict[str, Callable[[list[systems.System], systems.Upstream], Coroutine[None, None, None]]] = {
        "first-token": lambda columns, _: measure.first_token(columns, effort, samples),
        "load": lambda columns, upstream: measure.steady_load(columns, upstream, effort, samples),
        "burst": lambda columns, _: measure.burst(columns, effort, samples),
    }
    failures: list[str] = []
    if wanted := [name for name in streamed if name in only]:
        with ExitStack() as stack, _noting(failures, "starting the systems"):
            upstream = stack.enter_context(systems.upstream())
            columns = measure.start([SYSTEMS[name] for name in names], upstream, stack)
            uvloop.run(measure.warm_up(columns))
            for name in wanted:
                with _noting(failures, f"measuring {name}"):
                    uvloop.run(streamed[name](columns, upstream))
    if "submits" in only:
        with _noting(failures, "measuring submits"):
            measure.submits(with_tokenspool, effort, samples)
    if "followers" in only:
        with _noting(failures, "measuring followers"):
            measure.followers(with_tokenspool, effort, samples)
    if "batch" in only and with_tokenspool:
        with _noting(failures, "measuring the batch"):
            batch(effort, samples)
    return failures


@contextmanager
def _noting(failures: list[str], step: str) -> Iterator[None]:
    """Prints the step. If it fails, notes why and goes on with the other rows."""
    _say(step)
    try:
        yield
    except (measure.Failed, ProcessDown, Broken, OSError, subprocess.SubprocessError, ExceptionGroup) as error:
        causes = error.exceptions if isinstance(error, ExceptionGroup) else [error]
        failures.append(f"{step}: {'; '.join(dict.fromkeys(f'{type(cause).__name__}: {cause}' for cause in causes))}")


def _trust(samples: measure.Samples) -> list[str]:
    """How much CPU the load client, the stand-in and other processes used: if a lot, they were the limit."""
    if not samples.client_share:
        return []
    shares = {
        "load client": samples.client_share,
        "stand-in": samples.upstream_share,
        "processes outside the bench": samples.strangers_share,
        "stolen by the host": samples.stolen_share,
    }
    busiest = ", ".join(f"{who} {max(share):.0%}" for who, share in shares.items())
    slowest, fastest = figure(max(samples.loop_ms), "ms"), figure(min(samples.loop_ms), "ms")
    noise = max(map(sum, zip(samples.strangers_share, samples.stolen_share, strict=True)))
    return [
        *(["NOT A QUIET MACHINE: figures under load are worse than they would be."] if noise > LOUD_SHARE else []),
        f"of a core, at most: {busiest}",
        f"a million turns of a Python loop took {fastest} to {slowest}: how the machine's speed drifted meanwhile",
    ]


def _keep(samples: measure.Samples, effort: measure.Effort, this_machine: dict[str, object]) -> Path:
    at = datetime.now(UTC)
    HISTORY.mkdir(parents=True, exist_ok=True)
    path = HISTORY / f"{at:%Y-%m-%dT%H-%M-%SZ}.json"
    record = {
        "at": at.isoformat(timespec="seconds"),
        "machine": this_machine,
        "effort": dataclasses.asdict(effort),
        **samples.record(),
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def _raise_open_files() -> None:
    """10,000 followers need as many sockets here, and in the API, which inherits the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end_like_ctrl_c(signal_number: int, _: FrameType | None) -> None:
    """Ends as on Ctrl-C, for which asyncio cancels the main task.

    An exception raised here would surface in whatever code runs, and a connection's callback would swallow it.
    """
    _say(f"{signal.Signals(signal_number).name}: ending")
    signal.raise_signal(signal.SIGINT)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
