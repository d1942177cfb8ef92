"""`python -m simulator --port 0` runs the simulator as its own process, for tests and benchmarks."""

import argparse

from simulator.app import serve
from simulator.words import WordError, grammar


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m simulator", description="A stand-in for the APIs of Anthropic and OpenAI."
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=0, help="the port; 0 is a free one, which is printed")
    parser.add_argument("--words", default="", help="words in front of every prompt, e.g. 'fail=529,percent=10'")
    parser.add_argument("--grammar", action="store_true", help="print what a prompt may ask for, and end")
    arguments = parser.parse_args()
    if arguments.grammar:
        print(grammar())  # noqa: T201 - a command's output
        return
    try:
        serve(arguments.host, arguments.port, words=arguments.words)
    except (OSError, WordError) as error:
        parser.error(str(error))


main()
