"""Follow tokens: a URL with one follows one job, so that a browser needs no API key.

Pure, and nothing is stored: a token is signed with the SHA-256 of the API key that made it, which only Redis and the
key's holder know. So it ends with that key, at its rotation or its revocation (docs/decisions/0021). With
TOKENSPOOL_AUTH=off there is no key: its signature proves as little there as ``X-Tenant`` does.
"""

import base64
import hmac
import re
from typing import Final, NamedTuple

from shared.api_key import Scope

_RIGHTS: Final = {
    frozenset({Scope.READ}): "events",
    frozenset({Scope.CANCEL}): "cancel",
    frozenset({Scope.READ, Scope.CANCEL}): "events-cancel",
}
_SCOPES: Final = {right: scopes for scopes, right in _RIGHTS.items()}
_FORM: Final = re.compile(
    r"(tsf_([A-Za-z0-9_.-]{1,64})~(events|cancel|events-cancel)~([0-9]{1,15}))~([A-Za-z0-9_-]{43})", re.ASCII
)


class FollowToken(NamedTuple):
    """A text with the form of a follow token, still to be checked."""

    owner: str
    """The id of the API key that made it; with TOKENSPOOL_AUTH=off the tenant."""
    scopes: frozenset[Scope]
    expires_ms: int
    """By Redis's clock."""
    signed: str
    signature: str

    def is_for(self, job_id: str, digest: str) -> bool:
        """Whether it was made for that job, with that digest of a key."""
        return hmac.compare_digest(self.signature, _signature(self.signed, job_id, digest))


def new_follow_token(owner: str, scopes: frozenset[Scope], expires_ms: int, job_id: str, digest: str) -> str:
    """``tsf_<owner>~<rights>~<expires_ms>~<signature>``, all of which a URL can have as it is."""
    signed = f"tsf_{owner}~{_RIGHTS[scopes]}~{expires_ms}"
    return f"{signed}~{_signature(signed, job_id, digest)}"


def read_follow_token(text: str) -> FollowToken | None:
    """None if it lacks the form of a follow token."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    signed, owner, rights, expires_ms, signature = found.groups()
    return FollowToken(owner, _SCOPES[rights], int(expires_ms), signed, signature)


def _signature(signed: str, job_id: str, digest: str) -> str:
    own = hmac.digest(digest.encode(), f"{signed}~{job_id}".encode(), "sha256")
    return base64.urlsafe_b64encode(own).decode().rstrip("=")
