"""Runs a child process that Ctrl-C reaches, however the tests were started.

A process started with SIGINT ignored (in the background of a shell, after `trap '' INT`, by some CI runners) passes
that on to its children, and our commands keep an inherited SIG_IGN on purpose.
"""

import sys
from typing import Final

INTERRUPTIBLE: Final = (
    *(sys.executable, "-I", "-S", "-c"),
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
)
"""Put before a command, whose first word must be a path."""
