"""Tunes the garbage collector of a long-lived process, after its imports."""

import gc
from typing import Final

_YOUNG: Final = 20_000
_MIDDLE: Final = 50


def tune_gc() -> None:
    """Excludes all present objects from later collections, and collects less often.

    The SDK's types alone are some hundred thousand objects that live as long as the process. Walking them in every
    collection was 5 % of a worker's CPU under load, and requests create few cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, 100)
