"""A scripted stand-in for the Anthropic API over real HTTP: its pace, its answers, its faults.

It imports nothing of ours, so that it cannot share our mistakes. `app` starts it; `pace` is the grammar of model names,
`words` the grammar of what a prompt may ask for.
"""
