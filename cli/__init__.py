"""The `tokenspool` command, and the composition root: the one place that knows API, worker, Redis and LLM together."""
