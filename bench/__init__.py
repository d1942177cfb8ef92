"""Measures what tokenspool costs, compared with calling the LLM inside the web request.

`python -m bench` runs every row of `table`. Nothing here is a test.
"""
