"""How a batch comes in, is retried, and its results go out, whichever surface asks."""
