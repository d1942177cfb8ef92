"""How a job comes in, whichever surface it comes by."""
