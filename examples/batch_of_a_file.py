"""Runs a file of prompts as a batch, shows how far it is, and writes the results to a file.

    python examples/batch_of_a_file.py examples/prompts.jsonl results.jsonl

Each line of the file is {"custom_id": …, "params": {…}}. Run it again, in the middle or later: the file's own digest is
the Idempotency-Key, so it finds its batch again instead of making another. Reads TOKENSPOOL_URL and TOKENSPOOL_API_KEY.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

MEBIBYTE = 1 << 20


def main(requests: Path, results: Path) -> None:
    headers = {"Authorization": f"Bearer {os.environ.get('TOKENSPOOL_API_KEY', 'none')}"}
    url = os.environ.get("TOKENSPOOL_URL", "http://127.0.0.1:8000")
    with httpx2.Client(base_url=url, headers=headers, timeout=60) as client:
        batch = submit(client, requests)
        print(f"{batch['id']} {batch['status']}", flush=True)
        follow(client, batch["urls"]["events"])
        save(client, batch["urls"]["results"], results)
    print(f"results are in {results}")


def submit(client: httpx2.Client, path: Path) -> dict[str, Any]:
    """Sends the file in pieces: it is never in memory as a whole, neither here nor there."""
    with path.open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()
    answer = client.post(
        "/v1/batches",
        content=pieces(path),
        headers={"Content-Type": "application/jsonl", "Idempotency-Key": key},
    )
    answer.raise_for_status()
    batch: dict[str, Any] = answer.json()
    return batch


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(MEBIBYTE):
            yield piece


def follow(client: httpx2.Client, url: str) -> None:
    """Prints the counts as they change. A connection that breaks is made again: each one begins with where it stands."""
    while True:
        try:
            with client.stream("GET", url) as answer:
                answer.raise_for_status()
                event = ""
                for line in answer.iter_lines():
                    if line.startswith("event:"):
                        event = line.removeprefix("event:").strip()
                    elif line.startswith("data:") and event in ("progress", "ended"):
                        batch = json.loads(line.removeprefix("data:"))
                        print(
                            " ".join(f"{name}={count}" for name, count in batch["counts"].items() if count), flush=True
                        )
                        if event == "ended":
                            return
        except httpx2.TransportError as error:
            print(f"({error}; again)", flush=True)


def save(client: httpx2.Client, url: str, path: Path) -> None:
    """In the order of the file. Under another name until all of it is there."""
    unfinished = path.with_name(f"{path.name}.part")
    with client.stream("GET", url, params={"order": "submitted"}) as answer, unfinished.open("wb") as file:
        answer.raise_for_status()
        for piece in answer.iter_bytes():
            file.write(piece)
    unfinished.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
