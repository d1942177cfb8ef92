"""What ends a command early.

CommandError: one sentence for standard error and an exit code, never a traceback. 1 means that the command failed, 2
that the command, a setting or the environment is wrong; 130 and 141 are the shell's codes for Ctrl-C and a closed pipe.
"""


class CommandError(Exception):
    """The sentence says what is wrong and what to do next; an empty one is not printed."""

    def __init__(self, sentence: str, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def utf8(name: str, text: str) -> str:
    """The text. Raises CommandError if JSON cannot carry it: Python turns other bytes in arguments into half surrogate pairs."""
    try:
        text.encode()
    except UnicodeError:
        raise CommandError(f"The {name} must be UTF-8 text, but has other bytes.", 2) from None
    return text
