"""Streams an answer with the official SDK, and gets all of it however often this program dies meanwhile.

    ANTHROPIC_BASE_URL=http://127.0.0.1:8000 ANTHROPIC_API_KEY=any python examples/stream_and_come_back.py order-8841 "Why is the sky blue?"

The Idempotency-Key makes the call a job that goes on without us: kill the program in the middle, run it again with the
same key, and it prints the answer from its beginning. The LLM is called once.
"""

import os
import sys

from anthropic import Anthropic

key, prompt = sys.argv[1], sys.argv[2]

with Anthropic().messages.stream(
    model=os.environ.get("MODEL", "claude-sonnet-4-6"),
    max_tokens=1024,
    messages=[{"role": "user", "content": prompt}],
    extra_headers={"Idempotency-Key": key},
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()
