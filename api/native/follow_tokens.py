"""``/v1/jobs/{id}/follow-token``: a URL by which a browser follows one job without an API key."""

from datetime import timedelta
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter
from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Api, JobId, Reader
from api.http.body import read_json_if_sent
from api.http.members import Body, Expected, Whole, expected, read
from api.http.responses import json_response
from api.openapi import READS, body_of, json_of, operation
from api.state.key_ring import credential_of
from api.views.job import url_of
from shared.api_key import Scope
from shared.clock import to_rfc3339
from shared.errors import Forbidden
from shared.follow_token import new_follow_token

router = APIRouter()

MOST_EXPIRES_IN_S: Final = int(timedelta(hours=1).total_seconds())
DEFAULT_EXPIRES_IN_S: Final = int(timedelta(minutes=10).total_seconds())

_Flag = Annotated[bool, Field(strict=True), Expected("must be true or false")]


class FollowTokenRequest(Body):
    """The body may be left out."""

    expires_in_s: Annotated[int, Whole(1, MOST_EXPIRES_IN_S)] = DEFAULT_EXPIRES_IN_S
    """How long a connection can be opened with it, in seconds, if its API key does not end before."""
    events: _Flag = True
    """Whether it follows the job."""
    cancel: _Flag = False
    """Whether it cancels the job, too."""

    @model_validator(mode="after")
    def _allows_something(self) -> "FollowTokenRequest":
        if not (self.events or self.cancel):
            raise expected("must allow events or cancel")
        return self

    @property
    def scopes(self) -> frozenset[Scope]:
        """The scopes of a key that it needs."""
        return frozenset({Scope.READ} if self.events else ()) | frozenset({Scope.CANCEL} if self.cancel else ())


class FollowTokenView(msgspec.Struct, frozen=True):
    """A follow token."""

    token: str
    expires_at: str
    url: str
    """The path of the job's events with the token; of its cancel, if it is made for that alone."""


@router.post("/v1/jobs/{job_id}/follow-token", status_code=201)
@operation(
    {201: json_of(FollowTokenView, "The token, and the path to follow the job with.")},
    (*READS, 413, 415),
    body=body_of(FollowTokenRequest, required=False),
)
async def create_follow_token(request: Request, api: Api, caller: Reader, job_id: JobId) -> Response:
    """Make a token with which a browser's EventSource follows this one job, without an API key."""
    asked = read(FollowTokenRequest, await read_json_if_sent(request, caller))
    if not asked.scopes <= caller.scopes:
        raise Forbidden(f"The key lacks the scope {Scope.CANCEL}.")
    await api.runtime.jobs.get(job_id, caller.tenant)
    credential = credential_of(request.scope)
    owner, digest = credential.presented if credential is not None else (caller.tenant, "")
    expires_ms = await api.runtime.api_keys.now_ms() + asked.expires_in_s * 1000
    if credential is not None and credential.ends_ms is not None:
        expires_ms = min(expires_ms, credential.ends_ms)
    token = new_follow_token(owner, asked.scopes, expires_ms, job_id, digest)
    url = f"{url_of(job_id)}/{'events' if asked.events else 'cancel'}?token={token}"
    view = FollowTokenView(token, to_rfc3339(expires_ms), url)
    return json_response(msgspec.json.encode(view), 201)
