"""What reaches the person's terminal.

Model output and server messages are untrusted: an escape sequence in them could rewrite the screen or the clipboard, so
control characters never get through.
"""

import re
import sys

# All of Unicode's control characters but line feed and tab, and the marks that turn the direction of text around.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text without control characters; line feeds and tabs stay."""
    return _UNPRINTABLE.sub("", text)


def tell(line: str) -> None:
    """A line about the work, on standard error: standard output is the answer's alone."""
    print(f"tokenspool: {printable(line)}", file=sys.stderr, flush=True)
