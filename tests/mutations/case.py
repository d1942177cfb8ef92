"""One stream of a campaign, made from two numbers: equal numbers make equal streams."""

import random
from dataclasses import dataclass
from typing import Final

from tests.mutations import frame_mutation as frames
from tests.mutations import member_mutation as members
from tests.mutations import response_mutation as responses
from tests.mutations.chat_seed import chat_stream
from tests.mutations.frame import Dialect, End, Stream
from tests.mutations.frame_mutation import Mutation
from tests.mutations.messages_seed import messages_stream

_OTHER_WORDS: Final[dict[Mutation, float]] = {
    frames.said_in_the_start: 3,
    frames.gaps: 1,
    frames.message_for_delta: 2,
    frames.parts: 2,
    frames.calls_without_ids: 2,
    frames.arguments_as_object: 1,
}
"""Other forms of the same answer. They are applied first, because they create frames."""
_ODD: Final[dict[Mutation, float]] = {
    members.a_member: 40,
    members.an_unknown_member: 5,
    frames.noise: 20,
    frames.an_odd_value: 0.5,
    frames.a_word: 0.3,
    frames.layout: 6,
    frames.event_line: 3,
    frames.repeat: 5,
    frames.drop: 6,
    frames.broken_json: 3,
    frames.loose_json: 2,
    frames.error: 2,
    frames.silence: 4,
    frames.late: 3,
}
_ENDS: Final[dict[Mutation, float]] = {frames.end: 3, frames.after_the_end: 1}
_RESPONSES: Final[dict[Mutation, float]] = {
    responses.content_type: 3,
    responses.encoding: 4,
    responses.broken_encoding: 3,
    responses.whole_answer: 6,
    responses.error_object: 2,
    responses.refusal: 2,
    responses.page: 1,
    responses.redirect: 1,
}
_BY_SOCKET: Final = 0.12
"""The share of streams that go through a provider, with a mutated response."""


@dataclass(frozen=True)
class Case:
    """A seed stream and its mutations, each with its own random numbers."""

    dialect: Dialect
    seed: int
    steps: tuple[tuple[Mutation, int], ...]
    cuts_seed: int

    def stream(self) -> Stream:
        """A new copy of the stream."""
        rng = random.Random(self.seed)
        stream = messages_stream(rng) if self.dialect is Dialect.MESSAGES else chat_stream(rng)
        for mutation, seed in self.steps:
            mutation(stream, random.Random(seed))
        frames.pieces(stream, random.Random(self.cuts_seed))
        return stream


def a_case(campaign_seed: int, number: int) -> Case:
    """The case with that number."""
    rng = random.Random(f"{campaign_seed}:{number}")
    dialect = rng.choice(list(Dialect))
    seed, cuts_seed = rng.getrandbits(32), rng.getrandbits(32)
    by_socket = rng.random() < _BY_SOCKET
    plan: list[dict[Mutation, float]] = []
    if rng.random() < 0.3:
        plan.append(_OTHER_WORDS)
    wanted = rng.choices([0, 1, 2, 3, 4], weights=[2, 10, 6, 3, 1])[0]
    plan += [_ODD] * (wanted // 2 if by_socket else wanted)
    if rng.random() < 0.25 and not by_socket:
        plan.append(_ENDS)
    if by_socket:
        plan.append(_RESPONSES)
    case = Case(dialect, seed, (), cuts_seed)
    stream = case.stream()
    steps: list[tuple[Mutation, int]] = []
    for choices in plan:
        for _ in range(12):
            mutation = rng.choices(list(choices), weights=list(choices.values()))[0]
            if by_socket and mutation is frames.silence:
                continue  # time is real with a socket
            step_seed = rng.getrandbits(32)
            if mutation(stream, random.Random(step_seed)):
                steps.append((mutation, step_seed))
                break
    return Case(dialect, seed, tuple(steps), cuts_seed)


def needs_socket(stream: Stream) -> bool:
    """Whether it must go through a provider."""
    return stream.response is not None and stream.end is not End.HELD
