"""Starts a measured system's processes on loopback, measures their CPU and memory, and ends them by their ids.

No process outlives the `with` block that started it, nor the bench. Its output goes to a file; if the process does not
start, the end of that file is shown.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from cli.child import Child, start_child

REPOSITORY = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S = 20
END_TIMEOUT_S = 8


class ProcessDown(Exception):
    """A process ended by itself or did not become ready; the message has the end of its output."""

    def __init__(self, command: Sequence[str], what: str, output: IO[bytes]) -> None:
        output.seek(0)
        last_words = output.read()[-2000:].decode(errors="replace").strip()
        super().__init__(f"`{' '.join(command)}` {what}:\n{last_words}")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU that processes have used so far; subtract two of these for a window."""

    at_s: float  # CLOCK_MONOTONIC
    cpu_s: Mapping[str, float]  # user and system time by role
    client_cpu_s: float  # this process, which is the load client
    machine_busy_s: float  # all cores, every process of the machine
    stolen_s: float  # all cores, given to others by the host of a virtual machine


def usage(roles: Mapping[str, Sequence[int]]) -> Usage:
    """`roles` maps a role to the ids of its processes; their children are included."""
    machine = psutil.cpu_times()
    return Usage(
        time.monotonic(),
        {role: sum(_cpu_s(pid) for pid in pids) for role, pids in roles.items()},
        time.process_time(),
        machine.user + machine.nice + machine.system + machine.irq + machine.softirq,
        machine.steal,
    )


def _cpu_s(pid: int) -> float:
    total_s = 0.0
    for process in _tree(pid):
        times = process.cpu_times()
        total_s += times.user + times.system
    return total_s


def resident_bytes(pids: Sequence[int]) -> int:
    return sum(process.memory_info().rss for pid in pids for process in _tree(pid))


def connections_to(pids: Sequence[int], port: int) -> int:
    """The number of TCP connections from these processes to a port of this machine."""
    return sum(
        bool(connection.raddr) and connection.raddr.port == port
        for pid in pids
        for process in _tree(pid)
        for connection in process.net_connections(kind="tcp")
    )


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], ready_port: int | None = None) -> Iterator[int]:
    """Runs a command (an absolute path and its arguments) until the block ends; yields its process id.

    With `ready_port`, waits until `GET /health/ready` there gives any response but 503. The process is ended by
    SIGTERM, then by SIGKILL, and also when this process dies. Raises ProcessDown if it does not become ready, or ends
    before the block does.
    """
    with tempfile.TemporaryFile(mode="w+b") as output:
        child = start_child(command[0], command, output=output, environment={**_environment(), **environment})
        try:
            if ready_port is not None and not _becomes_ready(child, ready_port):
                raise ProcessDown(command, f"was not ready within {READY_TIMEOUT_S} s", output)
            yield child.pid
        finally:
            exit_code = child.exit_code
            child.stop(END_TIMEOUT_S)
            if exit_code is not None:
                raise ProcessDown(command, f"ended by itself with {exit_code}", output)


def _becomes_ready(child: Child, port: int) -> bool:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s and child.exit_code is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/health/ready")
            if connection.getresponse().status != 503:
                return True
        except (OSError, http.client.HTTPException):
            pass  # it does not listen yet
        finally:
            connection.close()
        time.sleep(0.05)
    return False


def _environment() -> dict[str, str]:
    """The environment, without variables that would configure a measured system and without proxies."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TOKENSPOOL_", "ANTHROPIC_", "OPENAI_", "OTEL_"))
        and not name.lower().endswith("_proxy")
    }


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """In this block, this process and the processes it starts run on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
