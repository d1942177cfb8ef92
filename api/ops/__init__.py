"""For operators and their monitoring: health, API keys, and what an error code means."""
