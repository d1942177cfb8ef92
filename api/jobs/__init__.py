"""How a job is created, for every surface."""
