"""The texts of the made-up LLM: they break parsers, and no error message may quote them."""

import itertools
import random
from typing import Any, Final

import msgspec

SECRETS: Final = ("quokka", "Käsekuchen", "zymurgy", "c4n4ry", "wombat", "4711")
"""Each is in some answer or in a mutated member, and must never be in a message of ours."""

_WORDS: Final = (
    *SECRETS[:3],
    "wombat",
    "naïve",
    "漢字かな",
    "👩‍👩‍👧‍👦🦀",
    "e\u0301",
    "عربي",
    "\n\n",
    "data: wombat\n\n",
    "event: error\n",
    "[DONE]",
    '"quoted"',
    "back\\slash",
    "\u2028",
    "\t",
    "{",
    "}",
    "<html>",
    "\u0000",
    "\ufeff",
    "\r\n",
    " ",
)


def pieces(rng: random.Random, at_most: int = 4) -> list[str]:
    """The pieces of an LLM's text, none of them empty."""
    return ["".join(rng.choices(_WORDS, k=rng.randint(1, 2))) for _ in range(rng.randint(1, at_most))]


def an_input(rng: random.Random) -> dict[str, Any]:
    """A tool's input."""
    values: list[Any] = [
        "wombat",
        "ü👩‍👧",
        4711,
        0.5,
        None,
        True,
        [1, {"quokka": "}"}],
        {"a": {"b": []}},
        '{"x":"\\n"}',
    ]
    return {name: rng.choice(values) for name in rng.sample(("city", "größe", "n", "quokka"), rng.randint(1, 3))}


def bites(rng: random.Random, value: object, at_most: int = 4) -> list[str]:
    """JSON in pieces, some of them empty."""
    text = msgspec.json.encode(value).decode()
    places = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(0, at_most - 1)))
    ends = [0, *places, len(text)]
    return [text[start:end] for start, end in itertools.pairwise(ends)]
