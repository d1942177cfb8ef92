"""What tokenspool costs, measured side by side with the LLM called inside the web request.

`python -m bench` runs every row of the table in the design's section 7; nothing here is a test.
"""
