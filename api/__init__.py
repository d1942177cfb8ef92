"""The HTTP surface: it takes jobs in, tells how they stand, and follows them. It never calls an LLM."""
