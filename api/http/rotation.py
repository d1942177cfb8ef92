"""The body of a rotation: how long the old secret stays valid."""

from datetime import timedelta
from typing import Annotated, Final

from starlette.requests import Request

from api.http.body import read_json_if_sent
from api.http.members import Body, Whole, read
from shared.api_key import Caller

MOST_GRACE_S: Final = int(timedelta(days=30).total_seconds())
DEFAULT_GRACE_S: Final = int(timedelta(days=1).total_seconds())


class RotateRequest(Body):
    """The body may be left out."""

    grace_s: Annotated[int, Whole(0, MOST_GRACE_S)] = DEFAULT_GRACE_S
    """How long the old secret stays valid, in seconds; 0 ends it at once."""


async def grace_s_of(request: Request, caller: Caller) -> int:
    """The body's ``grace_s``, or the default without a body. Raises what ``read_body`` does."""
    return read(RotateRequest, await read_json_if_sent(request, caller)).grace_s
