"""``/problems/{code}``: what an error's ``type`` points to. One short page for each code, made from the classes."""

import html
import inspect
from typing import Annotated, Final

from fastapi import APIRouter, Path
from starlette.responses import Response

from api.openapi import content, operation
from shared.errors import JOB_ERROR_CODES, NotFound, Problem, UpstreamFailed

router = APIRouter()

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Cache-Control": "public, max-age=3600",
}

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{code}</title>
<style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}}</style>
<h1>{title}</h1>
<p><code>{code}</code>, status {status}</p>
<p>{meaning}</p>
<p>{advice}</p>
</html>
"""

_ADVICE: Final = {
    "storage_unavailable": "It is not known whether the request took effect. Repeat it with the same Idempotency-Key, which "
    "never makes a second job.",
    "too_many_reads": "Wait for Retry-After, and send fewer reads at once: use ?result=false, a smaller limit, or "
    "follow instead of polling. Requests that changed something took effect, and are safe to repeat.",
    "idempotency_key_reused": "Use a new Idempotency-Key for a new request. Equal JSON is the same body, whatever its spacing.",
    "not_ended": "Cancel the job first, or wait for its end.",
    "invalid_cursor": "Follow without a cursor: everything that is still there is sent again.",
    "not_found": "It never existed, is past its retention, was erased, or belongs to another tenant.",
}


def _kinds(parent: type[Problem]) -> list[type[Problem]]:
    return [kind for child in parent.__subclasses__() for kind in (child, *_kinds(child))]


def _page_of(code: str, kind: type[Problem], meaning: str) -> bytes:
    retry = "Wait for Retry-After, then send the request again." if kind.retry_after_s is not None else ""
    client = "Change the fields that errors names." if kind.status in {400, 422} else ""
    parts = {
        "code": code,
        "title": kind.title,
        "status": str(kind.status),
        "meaning": meaning,
        "advice": _ADVICE.get(code, retry or client),
    }
    return _PAGE.format(**{name: html.escape(text.replace("``", "")) for name, text in parts.items()}).encode()


def _pages() -> dict[str, bytes]:
    pages = {code: _page_of(code, UpstreamFailed, meaning) for code, meaning in JOB_ERROR_CODES.items()}
    for kind in _kinds(Problem):
        meaning = inspect.cleandoc(kind.__doc__ or kind.title)
        pages[kind.code] = _page_of(kind.code, kind, JOB_ERROR_CODES.get(kind.code, meaning))
    return pages


PAGES: Final = _pages()


@router.get("/problems/{code}")
@operation({200: content({"type": "string"}, "A page.", "text/html")}, (400, 404))
async def read_problem(code: Annotated[str, Path(description="The ``code`` of a problem document.")]) -> Response:
    """What a code means and what to do."""
    page = PAGES.get(code)
    if page is None:
        raise NotFound
    return Response(page, media_type="text/html; charset=utf-8", headers=_HEADERS)
