"""Server-sent events: what a follower of a job or of a batch is sent."""
