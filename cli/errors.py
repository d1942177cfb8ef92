"""What ends a command early.

CommandError: one sentence for standard error and an exit code, never a traceback. 1 means that the command failed, 2
that the command, a setting or the environment is wrong; 130 and 141 are the shell's codes for Ctrl-C and a closed pipe.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.errors import Problem


class CommandError(Exception):
    """The sentence says what is wrong and what to do next; an empty one is not printed."""

    def __init__(self, sentence: str, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def refused_by_storage(problem: "Problem") -> CommandError:
    """The error for a command whose access to Redis failed, with the reason if it is known."""
    return CommandError(problem.reason or f"{problem.detail} Check TOKENSPOOL_REDIS_URL.")
