"""Connections and middleware, in front of every route. Knows nothing of jobs."""
