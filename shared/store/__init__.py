"""The only code that touches Redis."""
