"""How a field that is not valid is named to its sender: by a JSON pointer, never by content.

Pure. A name made by the sender is content too, unless it looks like a name: then the pointer stops at its parent.
"""

import re
from collections.abc import Iterable
from typing import Final

from shared.errors import FieldError, InvalidRequest

BODY: Final = "#"
MOST_ERRORS: Final = 20
"""A body may be wrong in a hundred thousand places; the first few are enough to see why."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def is_name(text: str) -> bool:
    """Whether a name that the sender made may be repeated to it."""
    return _NAME.fullmatch(text) is not None


def pointer(parent: str, name: str | int) -> str:
    """``#/job`` and ``priority`` → ``#/job/priority`` (RFC 6901 as a URI fragment); ``#/job`` if the name is none."""
    return f"{parent}/{name}" if is_name(str(name)) else parent


def unknown_parameter(name: str, known: Iterable[str] = ()) -> FieldError:
    """For a query parameter that means nothing where it was sent; ``known``: those that would."""
    takes = ", ".join(sorted(known))
    hint = f": this path takes {takes}" if takes else ""
    return (
        FieldError(name, f"is not known{hint}")
        if is_name(name)
        else FieldError(BODY, f"has a query parameter that is not known{hint}")
    )


def refuse(*errors: FieldError) -> InvalidRequest:
    """The 400 that names these fields."""
    shown = errors[:MOST_ERRORS]
    more = " at least" if len(errors) > MOST_ERRORS else ""
    count = "1 field is" if len(errors) == 1 else f"{len(shown)} fields{more} are"
    return InvalidRequest(f"{count} not valid.", errors=shown)


def whole_of(value: object, least: int, most: int) -> int | None:
    """The whole number in the range that it is; None if it is none.

    JSON has one kind of number, and encoders that write 1024 as ``1024.0`` mean 1024. ``true`` is no number, though Python's is.
    """
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and least <= value <= most else None
