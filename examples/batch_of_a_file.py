"""Runs a file of prompts as a batch, shows its progress, and writes the results to a file.

    python examples/batch_of_a_file.py examples/prompts.jsonl results.jsonl

Each line of the file is {"custom_id": …, "params": {…}}. Run it again at any time: the file's digest is the
Idempotency-Key, so it finds its batch again instead of creating another. Reads TOKENSPOOL_URL and TOKENSPOOL_API_KEY.
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
    """Sends the file in pieces, so that neither side holds all of it in memory."""
    with path.open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()
    response = client.post(
        "/v1/batches",
        content=pieces(path),
        headers={"Content-Type": "application/jsonl", "Idempotency-Key": key},
    )
    response.raise_for_status()
    batch: dict[str, Any] = response.json()
    return batch


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(MEBIBYTE):
            yield piece


def follow(client: httpx2.Client, url: str) -> None:
    """Prints the counts as they change. Reconnects after a broken connection; each one begins with the present counts."""
    while True:
        try:
            with client.stream("GET", url) as response:
                response.raise_for_status()
                event = ""
                for line in response.iter_lines():
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
            print(f"({error}; reconnecting)", flush=True)


def save(client: httpx2.Client, url: str, path: Path) -> None:
    """Saves the results in the order of the file, under another name until they are complete."""
    unfinished = path.with_name(f"{path.name}.part")
    with client.stream("GET", url, params={"order": "submitted"}) as response, unfinished.open("wb") as file:
        response.raise_for_status()
        for piece in response.iter_bytes():
            file.write(piece)
    unfinished.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
