"""Whether a new job may come in, as far as a process can tell by itself. Pure: reads what the loops have seen.

What only Redis knows exactly (how many jobs wait, and whether there is memory for one more) is refused by SUBMIT.
"""

from api.state.api_state import ApiState


def admit(api: ApiState) -> None:
    """Raises StorageFull above the high-water mark, so that the jobs that run keep the memory to finish."""
    api.runtime.memory.admit()
