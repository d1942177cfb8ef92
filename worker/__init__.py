"""Runs jobs: claims them from the queue, calls the LLM, writes every token to the log."""
