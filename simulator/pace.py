"""How long an answer is and how fast it comes, by the model's name.

`sim-t50-g20-f50` is 50 tokens, 20 ms apart, the first after 50 ms. A part left out has its default; `g0.5` is half a
millisecond. `simulated`, `simulated-fast` and `simulated-slow` are names for people. Any other name that begins with
`sim` is an unknown model, so that a typing error shows. All other names (`claude-…`) have the default pace.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

MAX_TOKENS = 200_000


@dataclass(frozen=True, slots=True)
class Pace:
    tokens: int
    gap_ms: float
    """Between two tokens."""
    first_ms: float
    """From the request to the first token."""

    def before_token_ms(self, index: int) -> float:
        return self.first_ms if index == 0 else self.gap_ms

    def whole_answer_ms(self, tokens: int) -> float:
        return self.first_ms + max(0, tokens - 1) * self.gap_ms


DEFAULT = Pace(tokens=40, gap_ms=30, first_ms=200)

NAMED = {
    "simulated": DEFAULT,
    "simulated-fast": Pace(tokens=40, gap_ms=2, first_ms=10),
    "simulated-slow": Pace(tokens=40, gap_ms=250, first_ms=1_000),
}

_PARTS = re.compile(r"sim((?:-[tgf]\d{1,6}(?:\.\d{1,3})?)+)")


@lru_cache(maxsize=1_000)
def pace_of(model: str) -> Pace | None:
    """None for a model that does not exist."""
    if not model.startswith("sim"):
        return DEFAULT
    if model in NAMED:
        return NAMED[model]
    parts = _PARTS.fullmatch(model)
    if parts is None:
        return None
    numbers = {part[0]: float(part[1:]) for part in parts[1].split("-")[1:]}
    return Pace(
        tokens=min(MAX_TOKENS, int(numbers.get("t", DEFAULT.tokens))),
        gap_ms=numbers.get("g", DEFAULT.gap_ms),
        first_ms=numbers.get("f", DEFAULT.first_ms),
    )
