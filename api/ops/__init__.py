"""What operators and their machines ask: health, and what an error code means."""
