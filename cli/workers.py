"""`tokenspool workers`: the workers that live."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cli.api_client import call, open_client
from cli.output import put_json, put_table, relative
from cli.terminal import note

_HEAD: Final = ("worker", "version", "status", "slots", "running", "LLM", "seen")


def list_workers(*, as_json: bool, url: str) -> None:
    """Print a line for each worker. Raises CommandError."""
    with open_client(url) as client:
        data = call(client, url, "GET", "/v1/workers").get("data")
    found = [worker for worker in (data if isinstance(data, list) else []) if isinstance(worker, dict)]
    if as_json:
        for worker in found:
            put_json(worker)
    elif found:
        put_table(_HEAD, map(_row, found), numbers=("slots", "running"), cut=("worker",))
    else:
        note("no worker is running: start one with `tokenspool worker`")


def _row(worker: Mapping[str, Any]) -> Sequence[str]:
    return (
        str(worker.get("name")),
        worker.get("version") or "",
        "drains" if worker.get("draining") else "works",
        str(worker.get("slots")),
        str(worker.get("running")),
        worker.get("llm") or "",
        relative(worker.get("last_seen_at")),
    )
