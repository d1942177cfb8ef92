"""What a long-lived process tells the garbage collector, once it has imported all that it will."""

import gc
from typing import Final

_YOUNG: Final = 20_000
_MIDDLE: Final = 50


def settle_garbage() -> None:
    """Takes what is there now out of every later collection, and collects less often.

    The SDK's types alone are some hundred thousand objects that live as long as the process; walking them again and again
    was 5 % of a worker's CPU under load. Requests leave few cycles behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, 100)
