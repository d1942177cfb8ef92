"""Prints what a program saw, one line of JSON each: the only thing that the programs share."""

import json
import os
import zlib
from typing import Any

import anthropic

RUN = os.environ.get("RUN", "run")
"""Distinguishes this run's prompts from those of other runs; a user's program would not have it."""

FAST = "sim-t8-g1-f1"
"""The stand-in's model: eight tokens, one millisecond apart. A user's program would name a Claude."""


def model_of(case: str, mode: str) -> str:
    """An equally fast model for this case alone, so that one case's failures do not affect another."""
    number = f"{zlib.crc32(f'{RUN} {case} {mode}'.encode()) % 1_000_000:06d}"
    return f"sim-t8-g1.{number[:3]}-f1.{number[3:]}"


def user(text: str) -> list[Any]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def tell(case: str, mode: str, **seen: Any) -> None:
    """Prints what a case has seen."""
    print(json.dumps({"case": case, "mode": mode, **seen}), flush=True)


def message(answer: Any) -> dict[str, Any]:
    """A message as the SDK returned it."""
    return {**answer.model_dump(mode="json"), "has_request_id": bool(answer._request_id)}


def error(caught: BaseException) -> dict[str, Any]:
    """What an ``except`` clause sees."""
    seen: dict[str, Any] = {
        "error": type(caught).__name__,
        "bases": [each.__name__ for each in type(caught).__mro__[1:-4]],
    }
    if isinstance(caught, anthropic.APIStatusError):
        body = caught.body if isinstance(caught.body, dict) else {}
        seen |= {
            "status": caught.status_code,
            "type": body.get("error", {}).get("type"),
            "type_attribute": getattr(caught, "type", None),
            "has_message": bool(body.get("error", {}).get("message")),
            "has_request_id": bool(caught.request_id) and bool(body.get("request_id")),
        }
    return seen
