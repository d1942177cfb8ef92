"""The surface of Anthropic's Messages API: programs written for its SDK work here by changing their base URL."""
