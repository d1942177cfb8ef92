"""`tokenspool limits`: what the key and its tenant may do, and what of it is left."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from cli.api_client import call, open_client
from cli.output import NOTHING, dollars, put_json, put_table, relative
from cli.terminal import note

_HEAD: Final = ("limit of", "limit", "allowed", "used", "held", "left", "free again")


def show_limits(*, as_json: bool, url: str) -> None:
    """Print each limit that is set. Raises CommandError."""
    with open_client(url) as client:
        found = call(client, url, "GET", "/v1/limits")
    if as_json:
        put_json(found)
        return
    rows = [row for owner in ("tenant", "key", "end_user") for row in _rows(owner, found.get(owner))]
    if rows:
        put_table(_HEAD, rows, numbers=("allowed", "used", "held", "left"))
    else:
        note("no limits are set")


def _rows(owner: str, limits: object) -> Iterator[Sequence[str]]:
    for name, use in limits.items() if isinstance(limits, dict) else ():
        if isinstance(use, dict):
            yield (owner.replace("_", " "), name.replace("_", " "), *_numbers_of(use), relative(use.get("resets_at")))


def _numbers_of(use: Mapping[str, Any]) -> Sequence[str]:
    if "limit_usd" in use:
        return tuple(dollars(use.get(f"{name}_usd")) for name in ("limit", "spent", "held", "remaining"))
    return tuple(
        f"{use[name]:,}" if isinstance(use.get(name), int) else NOTHING
        for name in ("limit", "used", "held", "remaining")
    )
