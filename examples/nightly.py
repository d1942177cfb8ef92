"""Runs a file of prompts as a batch, tries again what may succeed later, and writes the results to a file.

    python examples/nightly.py examples/prompts.jsonl results.jsonl

Each line of the file is {"custom_id": …, "params": {…}}. Killed at any time and run again it goes on: the file's digest
is the Idempotency-Key, so it finds its batches again instead of paying twice. Exits with 1 if a line has no answer.
Reads TOKENSPOOL_URL and TOKENSPOOL_API_KEY. Needs `httpx2`.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import httpx2

ROUNDS = 3
client = httpx2.Client(
    base_url=os.environ.get("TOKENSPOOL_URL", "http://127.0.0.1:8000"),
    headers={"Authorization": f"Bearer {os.environ.get('TOKENSPOOL_API_KEY', 'none')}"},
    timeout=60,
)


def main(prompts: Path, results: Path) -> int:
    body = prompts.read_bytes()
    key = hashlib.sha256(body).hexdigest()
    headers = {"Content-Type": "application/jsonl", "Idempotency-Key": key}
    found = lines_of(call("POST", "/v1/batches", content=body, headers=headers).json(), key)
    results.write_text("".join(f"{json.dumps(line)}\n" for line in found.values()))
    failed = [line for line in found.values() if line["status"] != "succeeded"]
    print(f"{len(found) - len(failed)} answers, {len(failed)} without one: {results}")
    return 1 if failed else 0


def lines_of(batch: dict[str, Any], key: str) -> dict[str | None, Any]:
    """The last result of each line, after up to three rounds: what failed and may succeed later runs again."""
    found: dict[str | None, Any] = {}
    for number in range(1, ROUNDS + 1):
        wait(batch)
        lines = [json.loads(line) for line in call("GET", batch["urls"]["results"]).content.splitlines()]
        found |= {line["custom_id"]: line for line in lines}
        if number == ROUNDS or not any(line["error"] and line["error"]["retryable"] for line in lines):
            break
        again = {"Idempotency-Key": f"{key}-{number}"}
        batch = call("POST", f"{batch['urls']['self']}/retry?retryable=true", headers=again).json()
    return found


def wait(batch: dict[str, Any]) -> None:
    """Returns at the batch's end."""
    while batch["status"] != "ended":
        time.sleep(2)
        batch = call("GET", batch["urls"]["self"]).json()
    print(batch["id"], {name: count for name, count in batch["counts"].items() if count}, flush=True)


def call(method: str, path: str, **request: Any) -> httpx2.Response:
    """A call that is repeated until it has a response: a POST has an Idempotency-Key, so it happens once."""
    while True:
        wait_s = 2
        try:
            response = client.request(method, path, **request)
            if response.status_code not in (429, 503):
                return response.raise_for_status()
            wait_s = int(response.headers.get("Retry-After", wait_s))
        except httpx2.TransportError as error:
            print(f"({error}; again)", flush=True)
        time.sleep(wait_s)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
