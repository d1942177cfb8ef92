"""Which calls the simulator got and how each ended: the ground truth to which tests compare the product's own ledger.

Times are `time.monotonic()`, which all processes on one machine share. Of a prompt only its nonce is kept.
The record keeps the last 200,000 calls; the counters count all calls.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

KEPT_CALLS = 200_000

Endpoint = Literal["messages", "count_tokens", "chat_completions"]

Ended = Literal["completed", "fault", "refused", "client_closed", "shutdown"]


@dataclass(slots=True)
class Call:
    number: int
    """Counts all calls of this server, from 1."""
    endpoint: Endpoint
    started_s: float
    nonce: str | None = None
    nonce_call: int | None = None
    """Counts the calls with this nonce (or, without a nonce, this prompt), from 1. None: refused before it was read."""
    model: str | None = None
    stream: bool = False
    sdk_retry: str | None = None
    """The request's `x-stainless-retry-count`: "1" means that the SDK itself retried."""
    beta: str | None = None
    """The request's `anthropic-beta`."""
    version: str | None = None
    """The request's `anthropic-version`."""
    faults: tuple[str, ...] = ()
    """The names of the faults planned for this call."""
    status: int | None = None
    """The response's status; None: no response head was sent."""
    input_tokens: int = 0
    """Without the tokens that `cached=` and `cache-write=` add."""
    output_tokens: int = 0
    """Tokens in the whole answer, even if only a part was sent."""
    tokens_sent: int = 0
    bytes_sent: int = 0
    first_token_s: float | None = None
    max_late_s: float = 0
    """The longest delay of a step after its due time: large if this server or a slow reader was the bottleneck."""
    ended: Ended | None = None
    """None while the call is in progress. `client_closed`: the client closed the connection before the end."""
    ended_s: float | None = None
    client_closed_s: float | None = None
    """When the simulator noticed the client's close, if the client closed during the call."""


class Record:
    def __init__(self, kept_calls: int = KEPT_CALLS) -> None:
        self.calls: deque[Call] = deque(maxlen=kept_calls)
        self.open_streams: set[int] = set()
        """The numbers of the calls in progress."""
        self.peak_open_streams = 0
        self.ended: Counter[str] = Counter()
        self.listeners: list[Callable[[], None]] = []
        """Called whenever a call begins, sends a token or ends."""
        self._kept_calls = kept_calls
        self._last_number = 0
        self._calls_by_key: dict[str, int] = {}

    def begin(
        self, endpoint: Endpoint, sdk_retry: str | None, beta: str | None = None, version: str | None = None
    ) -> Call:
        self._last_number += 1
        call = Call(
            number=self._last_number,
            endpoint=endpoint,
            started_s=time.monotonic(),
            sdk_retry=sdk_retry,
            beta=beta,
            version=version,
        )
        self.calls.append(call)
        self.open_streams.add(call.number)
        self.peak_open_streams = max(self.peak_open_streams, len(self.open_streams))
        self.changed()
        return call

    def next_call_of(self, key: str) -> int:
        """Counts a call with this nonce or prompt; the first is 1."""
        number = self._calls_by_key.pop(key, 0) + 1
        self._calls_by_key[key] = number  # moves the key to the end of the dict, whose first is the least recently used
        if len(self._calls_by_key) > self._kept_calls:
            del self._calls_by_key[next(iter(self._calls_by_key))]
        return number

    def end(self, call: Call, ended: Ended) -> None:
        call.ended_s = time.monotonic()
        call.ended = ended
        if ended == "client_closed":
            call.client_closed_s = call.ended_s
        self.open_streams.discard(call.number)
        self.ended[ended] += 1
        self.changed()

    def reset(self) -> int:
        """Forgets all calls and their counts, and returns how many; calls in progress go on."""
        forgotten = len(self.calls)
        self.calls.clear()
        self._calls_by_key.clear()
        self.ended.clear()
        self.peak_open_streams = len(self.open_streams)
        self.changed()
        return forgotten

    def changed(self) -> None:
        for listener in self.listeners:
            listener()

    def of_nonce(self, nonce: str) -> list[Call]:
        return [call for call in self.calls if call.nonce == nonce]

    def counts(self) -> dict[str, object]:
        return {
            "now_s": time.monotonic(),
            "open_streams": len(self.open_streams),
            "peak_open_streams": self.peak_open_streams,
            "calls": sum(self.ended.values()) + len(self.open_streams),
            "ended": dict(self.ended),
        }


_FIELDS = [field.name for field in fields(Call)]


def call_as_json(call: Call) -> dict[str, object]:
    return {name: getattr(call, name) for name in _FIELDS}
