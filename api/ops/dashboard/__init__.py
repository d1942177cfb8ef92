"""The window: a page where people see, try and steer everything, served at ``/``.

Its files are static, in ``static/``, and it is a client of the public API like any other: nothing here reads a job. There is no
build step; what is vendored is listed in ``static/vendor/vendored.json`` with its version, licence and hash.
"""

import mimetypes
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Api
from api.http.headers import one
from api.http.responses import json_response
from shared.errors import NotFound

router = APIRouter(include_in_schema=False)

STATIC: Final = Path(__file__).parent / "static"

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""No inline script or style, and nothing from elsewhere: an image in an answer would tell its host who reads it."""


class _File(NamedTuple):
    body: bytes
    headers: dict[str, str]


def _read(path: Path) -> _File:
    body = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    kind = "text/javascript" if path.suffix == ".js" else kind
    return _File(
        body,
        {
            "Content-Type": f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
            "Content-Security-Policy": _POLICY,
            "Cache-Control": "no-cache",  # asked for again each time, by its ETag: an upgrade shows at once
            "ETag": f'"{sha256(body).hexdigest()[:16]}"',
        },
    )


_FILES: Final = {path.relative_to(STATIC).as_posix(): _read(path) for path in STATIC.rglob("*") if path.is_file()}
"""By path. Some 100 KB, read once."""


@router.get("/")
async def read_page(request: Request) -> Response:
    """The page."""
    # The router takes "/\n" for "/" too: its pattern ends with $.
    return _response(request, "index.html" if request.scope["path"] == "/" else "")


class Config(msgspec.Struct, frozen=True):
    """What the page must know of its server, and no route of the API says."""

    dev_controls: bool


@router.get("/dashboard/config.json")
async def read_config(api: Api) -> Response:
    """Needs no key: it says nothing of any tenant."""
    return json_response(msgspec.json.encode(Config(api.settings.dev_controls)))


@router.get("/dashboard/{path:path}")
async def read_file(request: Request, path: str) -> Response:
    """A file of the page. 404 if it has no such file."""
    return _response(request, path)


def _response(request: Request, path: str) -> Response:
    found = _FILES.get(path)
    if found is None:
        raise NotFound
    if one(request, b"if-none-match") == found.headers["ETag"]:
        return Response(status_code=304, headers=found.headers)
    return Response(found.body, headers=found.headers)
