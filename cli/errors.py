"""What ends a command early.

CommandError: one sentence for standard error and an exit code, never a traceback. 1 means that it could not be done, 2
that the command, a setting or the environment is wrong; 130 and 141 mean what a shell means by them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.errors import Problem


class CommandError(Exception):
    """The sentence says what happened and what to do next; an empty one is not printed."""

    def __init__(self, sentence: str, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def refused_by_storage(problem: "Problem") -> CommandError:
    """What to say when a command that talks to Redis itself could not: why, where that is known."""
    return CommandError(problem.reason or f"{problem.detail} Is TOKENSPOOL_REDIS_URL right?")
