"""A scripted stand-in for Anthropic's Messages API and OpenAI's Chat Completions, over real HTTP.

It imports nothing from the product, so that the two cannot share a mistake. `app` starts it. A model's name sets the
pace (`pace`), and words in the prompt set the answer and the faults (`words`).
"""
