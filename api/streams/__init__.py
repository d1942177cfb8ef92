"""Server-sent events for the followers of a job or a batch."""
