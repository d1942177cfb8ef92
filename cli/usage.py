"""`tokenspool usage`: the calls, tokens and cost of the key's tenant."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cli.api_client import call, open_client
from cli.errors import CommandError
from cli.output import dollars, put_json, put_table
from cli.terminal import note

_GROUPS: Final = ("tenant", "day", "model", "key", "end_user")
_TOKENS: Final = (
    ("input", "input_tokens"),
    ("cache write", "cache_creation_input_tokens"),
    ("cache read", "cache_read_input_tokens"),
    ("output", "output_tokens"),
)
_NUMBERS: Final = ("calls", *(name for name, _ in _TOKENS), "cost")
_MOST_PAGES: Final = 1000


def show_usage(query: Mapping[str, str | None], *, as_json: bool, url: str) -> None:
    """Print a row for each group, and the total. Raises CommandError."""
    report = _report({name: value for name, value in query.items() if value is not None}, url)
    if as_json:
        put_json(report)
        return
    total = report["total"]
    groups = [name for name in _GROUPS if name in report.get("group_by", ())]
    rows = [[*(str(line.get(name) or "") for name in groups), *_numbers_of(line)] for line in report["data"]]
    if groups:
        rows.append(["total", *("" for _ in groups[1:]), *_numbers_of(total)])
    put_table((*groups, *_NUMBERS), rows, numbers=_NUMBERS, cut=("model", "tenant", "end_user"))
    if total.get("unpriced_calls"):
        note(f"the price of {total['unpriced_calls']:,} calls is unknown: their cost is not in the sums")


def _report(query: dict[str, Any], url: str) -> dict[str, Any]:
    """The whole report, without the cursors of its pages."""
    data: list[dict[str, Any]] = []
    with open_client(url) as client:
        for _ in range(_MOST_PAGES):
            page = call(client, url, "GET", "/v1/usage", params=query)
            if not isinstance(page.get("data"), list):
                break
            data += page["data"]
            if page.get("next") is None:
                return {name: value for name, value in page.items() if name not in ("has_more", "next")} | {
                    "data": data
                }
            query = {**query, "after": page["next"]}
    raise CommandError(f"{url} sent no end of the usage: check that it is tokenspool.")


def _numbers_of(line: Mapping[str, Any]) -> Sequence[str]:
    counts = (line.get(name, 0) for name in ("calls", *(name for _, name in _TOKENS)))
    return (*(f"{count:,}" for count in counts), dollars(line.get("cost_usd")))
