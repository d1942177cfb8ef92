"""Runs an example as its reader does: in its own process and environment."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"

_OF_THE_DEVELOPER = ("ANTHROPIC_", "OPENAI_", "TOKENSPOOL_", "PYTHON")


@asynccontextmanager
async def an_example(
    name: str, *arguments: str | Path, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Starts the example; kills it at the end if it still runs."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith(_OF_THE_DEVELOPER)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        EXAMPLES / name,
        *arguments,
        env={**mine, **environment, "PYTHONUTF8": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def printed(name: str, *arguments: str | Path, **environment: str) -> str:
    """Runs the example; returns what it prints. It must exit with 0."""
    async with an_example(name, *arguments, **environment) as process, asyncio.timeout(40):
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()


async def read_until(process: asyncio.subprocess.Process, sign: str) -> str:
    """Reads until the sign appears; returns what was printed so far."""
    assert process.stdout is not None
    so_far = b""
    async with asyncio.timeout(30):
        while sign.encode() not in so_far:
            piece = await process.stdout.read(4096)
            if not piece:
                assert process.stderr is not None
                raise AssertionError((await process.stderr.read()).decode())
            so_far += piece
    return so_far.decode()
