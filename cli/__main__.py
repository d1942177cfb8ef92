"""`python -m cli` is `tokenspool`: how the command starts its own processes, whatever is on PATH."""

from cli.app import main

main()
