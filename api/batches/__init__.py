"""How a batch is created and retried, and its results are sent, for every surface."""
