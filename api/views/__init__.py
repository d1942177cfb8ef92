"""The JSON forms of a job and of a batch, for routes and for streams."""
