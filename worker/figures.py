"""What this worker adds to the figures of the service: counted in memory, sent to Redis every two seconds.

Nothing is done for a token: the answers under way know how many pieces they have.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final

from shared.figures import class_of
from shared.store.figures import Figures
from worker.upstream_call import UpstreamCall

_SENT_EVERY_S: Final = 2.0
_RATE_OVER_S: Final = 5.0


class WorkerFigures:
    """One for a worker process."""

    def __init__(self, figures: Figures, now_s: Callable[[], float]) -> None:
        self._figures = figures
        self._now_s = now_s
        self._unsent: Counter[str] = Counter()
        self._sent_s = now_s()
        self._tokens = 0
        """Of all answers since the start of the process."""
        self._looks: deque[tuple[float, int]] = deque([(now_s(), 0)])

    def first_token(self, after_ms: float) -> None:
        """A job's answer has begun, so long after its claim."""
        self._unsent[f"t{class_of(after_ms)}"] += 1

    def call_ended(self, call: UpstreamCall, output_tokens: int) -> None:
        """Counts what the upstream reported in place of the pieces that were counted so far."""
        self._add(output_tokens - (call.tokens_counted or 0))
        call.tokens_counted = None

    def look(self, calls: Iterable[UpstreamCall]) -> float:
        """Counts what has come of these calls. Returns the tokens per second of the last seconds."""
        for call in calls:
            if call.tokens_counted is not None:
                pieces = call.completion.pieces
                self._add(pieces - call.tokens_counted)
                call.tokens_counted = pieces
        now_s = self._now_s()
        self._looks.append((now_s, self._tokens))
        while len(self._looks) > 2 and self._looks[1][0] <= now_s - _RATE_OVER_S:
            self._looks.popleft()
        first_s, first = self._looks[0]
        return max(0.0, (self._tokens - first) / max(0.001, now_s - first_s))

    def _add(self, tokens: int) -> None:
        self._tokens += tokens
        self._unsent["tokens"] += tokens

    async def send(self, *, at_once: bool = False) -> None:
        """Sends what has come together, if it is time. Raises StorageUnavailable, StorageFull; then it is sent the next time."""
        if not at_once and self._now_s() - self._sent_s < _SENT_EVERY_S:
            return
        amounts = {name: amount for name, amount in self._unsent.items() if amount}
        if amounts:
            await self._figures.add(amounts)
            self._unsent.subtract(amounts)
        self._sent_s = self._now_s()
