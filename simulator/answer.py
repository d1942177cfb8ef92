"""The content of an answer: blocks of tokens, computed from the request alone, without format or timing.

One token is one delta and counts as one output token. The text says that it is simulated, and differs by prompt.
"""

import json
import re
import zlib
from dataclasses import dataclass

from simulator.request import Request
from simulator.words import SAMPLES, Fault, Words

BIG_LINE_BYTES = 10 * 1024 * 1024

_THINKING = ("This ", "is ", "simulated ", "thinking ", "before ", "the ", "answer. ")

_SENTENCES = (
    "A spool holds the thread so that nobody has to hold the loom.",
    "Whoever waits in line still keeps the place.",
    "What was written down before the fall is there after it.",
    "A thread that breaks is tied where it broke, not spun again.",
    "Each knot has one number, and no number has two knots.",
    "The weaver may leave the room; the cloth grows on.",
    "An end that is not marked is only a pause.",
    "Two hands on one shuttle weave nothing, so one lets go.",
    "Nothing here was thought by a model; it only keeps the pace of one.",
    "Of a hundred thousand threads none is dropped for being the last.",
    "The pattern is the same whoever reads it, and however late.",
)

_TOKENS = re.compile(r"\s*\S+\s?|\s+")


@dataclass(frozen=True, slots=True)
class Block:
    kind: str
    """One of words.BLOCKS."""
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    name: str
    """Part of every id in the answer."""
    created_s: int
    """Unix time."""
    model: str
    input_tokens: int
    """The request's own tokens; those in the prompt cache are extra."""
    cached_tokens: int
    cache_write_tokens: int
    blocks: tuple[Block, ...]
    stop_reason: str
    tool: str

    @property
    def output_tokens(self) -> int:
        return sum(len(block.tokens) for block in self.blocks)


def answer_to(
    request: Request,
    words: Words,
    *,
    tokens: int,
    call_number: int,
    name: str,
    created_s: int,
    big_line: Fault | None = None,
) -> Answer:
    """An answer with `tokens` tokens in each text block, cut at the request's max_tokens."""
    room = request.max_tokens
    blocks: list[Block] = []
    stop_reason = words.stop_reason or ("tool_use" if "tool" in words.blocks else "end_turn")
    for kind in words.blocks:
        whole = _tokens(kind, request, words, tokens, call_number, big_line)
        blocks.append(Block(kind, whole[:room]))
        if len(whole) > room:
            stop_reason = "max_tokens"
            break
        room -= len(whole)
    return Answer(
        name=name,
        created_s=created_s,
        model=request.model,
        input_tokens=request.input_tokens,
        cached_tokens=words.cached_tokens,
        cache_write_tokens=words.cache_write_tokens,
        blocks=tuple(blocks),
        stop_reason=stop_reason,
        tool=request.tool,
    )


def _tokens(
    kind: str, request: Request, words: Words, tokens: int, call_number: int, big_line: Fault | None
) -> tuple[str, ...]:
    if kind == "thinking":
        return _THINKING
    if kind == "tool":
        return tuple(_TOKENS.findall(json.dumps({"simulated": True, "nonce": words.nonce, "call": call_number})))
    said = _text_tokens(request, words, tokens, call_number)
    if big_line is None:
        return said
    place = int(big_line.value)
    return (*said[:place], "x" * int(big_line.options.get("bytes", BIG_LINE_BYTES)), *said[place:])


def _text_tokens(request: Request, words: Words, tokens: int, call_number: int) -> tuple[str, ...]:
    if words.echo is not None:
        return tuple(_TOKENS.findall(words.echo))
    if words.sample is not None:
        return SAMPLES[words.sample]
    if words.nonce is not None:
        return tuple([f"{words.nonce}.{call_number}.{index} " for index in range(tokens)])
    return _demonstration(request.prompt, tokens)


def _demonstration(prompt: str, tokens: int) -> tuple[str, ...]:
    digest = zlib.crc32(prompt.encode(errors="replace"))
    said = f"This is a simulated answer (number {digest:08x}, made from your prompt). ".split()
    sentence = digest % len(_SENTENCES)
    while len(said) < tokens:
        said += _SENTENCES[sentence].split()
        sentence = (sentence + 1) % len(_SENTENCES)
    return tuple([f"{word} " for word in said[:tokens]])
