"""A child that a Ctrl-C reaches, whoever runs the tests.

A process that was started with SIGINT ignored (a job in the background of a shell, `trap '' INT`, some CI runners) hands that
on to its children, and a command of ours rightly keeps to it: whoever ignores SIGINT for it means that.
"""

import sys
from typing import Final

INTERRUPTIBLE: Final = (
    *(sys.executable, "-I", "-S", "-c"),
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
)
"""Stands before a command, whose first word is a path."""
