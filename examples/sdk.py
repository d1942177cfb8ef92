"""A program with the official SDK, moved over by its base URL: it gets the whole answer, whatever breaks or dies.

    ANTHROPIC_BASE_URL=http://127.0.0.1:8000 ANTHROPIC_API_KEY=any python examples/sdk.py order-8841 "Why is the sky blue?"

The Idempotency-Key makes the call a job that goes on without us. Kill the program in the middle and run it again with
the same key, or restart the API: it prints the answer from its beginning, and the LLM is called once.
"""

import os
import sys
import time

from anthropic import Anthropic, APIConnectionError
from httpx2 import TransportError

client = Anthropic(max_retries=10)


def answer(key: str, prompt: str) -> None:
    """The program as it was, but for the key."""
    with client.messages.stream(
        model=os.environ.get("MODEL", "claude-sonnet-4-6"),
        max_tokens=1024,
        messages=[{"role": "user", "content": prompt}],
        extra_headers={"Idempotency-Key": key},
    ) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
    print()


def whole_answer(key: str, prompt: str) -> None:
    while True:
        try:
            return answer(key, prompt)
        except (APIConnectionError, TransportError):
            print("\n(the connection broke; once more from the beginning)", flush=True)
            time.sleep(1)


whole_answer(sys.argv[1], sys.argv[2])
