"""The HTTP API: it accepts jobs, shows their state, and streams their events. It never calls an LLM."""
