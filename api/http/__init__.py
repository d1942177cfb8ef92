"""Reading requests and building responses. Knows nothing of jobs."""
