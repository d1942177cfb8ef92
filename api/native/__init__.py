"""The native API: jobs, batches, usage and webhooks, and the two calls that wait for an answer."""
