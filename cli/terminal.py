"""What reaches the user's terminal.

Model output and server messages are untrusted: an escape sequence in them could rewrite the screen or the clipboard, so
control characters are removed.
"""

import os
import re
import sys

from cli.errors import CommandError

# All of Unicode's control characters but line feed and tab, and the marks that turn the direction of text around.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text without control characters; line feeds and tabs stay."""
    return _UNPRINTABLE.sub("", text)


def one_line(text: str) -> str:
    """The text for the middle of a sentence: also without line feeds and tabs."""
    return printable(" ".join(text.split()))


def put(text: str) -> None:
    """Write text to standard output at once. Raises CommandError if that fails, with an empty message for a closed pipe."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Else Python fails again at exit, when it flushes its buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # its reader is gone, as in `| head`
            raise CommandError("", 141) from None
        raise CommandError(f"Cannot write to standard output: {error.strerror}.") from None


def note(line: str) -> None:
    """Write a line about the work to standard error: standard output is for the answer."""
    print(f"tokenspool: {printable(line)}", file=sys.stderr, flush=True)
