"""Why a job waits, in words: what ``waiting_for`` says in JSON."""

from collections.abc import Iterable
from typing import Any, Final

_OWNERS: Final = {"tenant": "the tenant", "key": "the API key", "end_user": "the end user"}

_ROUTES: Final = {
    "retry_after": "{route} has asked for a pause until {until}",
    "circuit": "the calls to {route} fail; its circuit is open since {since}",
    "minute_full": "{route} has used up its limit of a minute, until {until}",
    "full": "{route} has as many calls under way as it may have",
}


def sentence_of(waiting_for: Iterable[Any]) -> str:
    """One sentence without its full stop, such as ``waiting: no worker is running; position 7 in the queue``."""
    return "waiting: " + "; ".join([_clause_of(reason) for reason in waiting_for if isinstance(reason, dict)])


def _clause_of(reason: dict[str, Any]) -> str:
    owner = _OWNERS.get(str(reason.get("of")), str(reason.get("of")))
    try:
        match reason["reason"]:
            case "no_worker":
                return "no worker is running"
            case "not_before":
                return "it is not to start before {until}".format(**reason)
            case "retry":
                return "attempt {attempt} follows at {until}".format(**reason)
            case "budget":
                clause = "{owner} has spent {spent_usd:.2f} of {limit_usd:.2f} USD of this {period}"
                clause += ", until {until}" if reason["until"] else ", and its running jobs may cost {held_usd:.2f} USD"
                return clause.format(owner=owner, **reason)
            case "route":
                return _ROUTES[reason["because"]].format(**reason)
            case "running_jobs":
                return "{owner} runs {running} jobs, and may run {limit}".format(owner=owner, **reason)
            case "turn":
                return "position {position} in the queue".format(**reason)
            case other:
                return str(other)
    except (KeyError, ValueError, TypeError):  # of a later version
        return str(reason.get("reason"))
