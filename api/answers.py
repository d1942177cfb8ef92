"""Answers whose JSON is encoded already."""

from collections.abc import Mapping
from typing import Final

from starlette.responses import Response

from api.headers import JSON

_NO_STORE: Final = {"Cache-Control": "no-store"}


def json_answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Not for caches: what a job is like is true for a moment only, and private."""
    return Response(body, status, {**_NO_STORE, **headers} if headers else _NO_STORE, JSON)
