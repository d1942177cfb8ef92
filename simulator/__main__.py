"""`python -m simulator --port 0` runs the simulator as its own process, for tests and benchmarks."""

import argparse

from simulator.app import serve
from simulator.words import WordError, grammar


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m simulator", description="A scripted stand-in for the APIs of Anthropic and OpenAI."
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=0, help="the port; 0 picks a free one and prints it")
    parser.add_argument("--words", default="", help="words put before every prompt, e.g. 'fail=529,percent=10'")
    parser.add_argument("--grammar", action="store_true", help="print the words that a prompt may hold, and exit")
    arguments = parser.parse_args()
    if arguments.grammar:
        print(grammar())  # noqa: T201 - a command's output
        return
    try:
        serve(arguments.host, arguments.port, words=arguments.words)
    except (OSError, WordError) as error:
        parser.error(str(error))


main()
