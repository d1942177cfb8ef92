"""What the API, the workers and the command line share: pure modules, and ``store/``, the only code that touches Redis."""
