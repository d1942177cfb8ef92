"""Names invalid fields to the sender of a request: by JSON pointer, never by their content.

Pure. A name that the sender chose is content too, unless it looks like an identifier: the pointer stops at its parent.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final

from pydantic import ValidationError

from shared.errors import FieldError, InvalidRequest

BODY: Final = "#"
MOST_ERRORS: Final = 20
"""A body may be wrong in a hundred thousand places; the first few are enough to see why."""
EXPECTED: Final = "expected"
"""The type of those pydantic errors whose message is a sentence of ours."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def is_name(text: str) -> bool:
    """Whether a name that the sender chose may be repeated in a response."""
    return _NAME.fullmatch(text) is not None


def pointer(parent: str, name: str | int) -> str:
    """``#/job`` and ``priority`` → ``#/job/priority`` (RFC 6901 as a URI fragment); ``#/job`` if not ``is_name``."""
    return f"{parent}/{name}" if is_name(str(name)) else parent


def unknown_parameter(name: str, known: Iterable[str] = ()) -> FieldError:
    """The error for an unknown query parameter. ``known``: those that the path takes."""
    names = sorted(known)
    takes = f"this path takes {', '.join(names)}" if names else "this path takes no query parameters"
    if not is_name(name):
        return FieldError(BODY, f"has a query parameter that is not known: {takes}")
    nearest = get_close_matches(name, names, n=1)
    hint = f"did you mean {nearest[0]}? T{takes[1:]}" if nearest else takes
    return FieldError(name, f"is not known: {hint}")


def is_known(name: str, known: Collection[str]) -> bool:
    """Whether a query parameter is among these, where ``metadata.*`` stands for all that begin with ``metadata.``."""
    outer, is_inner, _ = name.partition(".")
    return name in known or (bool(is_inner) and f"{outer}.*" in known)


def in_query(errors: Iterable[FieldError]) -> list[FieldError]:
    """The errors of an object (its own pointer empty) that was sent as query parameters, such as ``metadata.run``."""
    return [FieldError(error.pointer[1:].replace("/", "."), error.detail) for error in errors]


def unknown_member(parent: str, name: str) -> FieldError:
    """The error for an unknown member of the object at ``parent``."""
    where = pointer(parent, name)
    return FieldError(where, "is not known" if where != parent else "has a member that is not known")


def refuse(*errors: FieldError) -> InvalidRequest:
    """The 400 that names these fields."""
    shown = errors[:MOST_ERRORS]
    more = " at least" if len(errors) > MOST_ERRORS else ""
    count = "1 field is" if len(errors) == 1 else f"{len(shown)} fields{more} are"
    return InvalidRequest(f"{count} not valid.", errors=shown)


def fields_of(error: ValidationError, at: str = BODY) -> list[FieldError]:
    """pydantic's errors in the body at that pointer: at most one more than are shown, so that ``refuse`` can say so."""
    found = error.errors(include_url=False, include_input=False)
    return [_field_of(each, at) for each in found[: MOST_ERRORS + 1]]


def _field_of(found: Mapping[str, Any], at: str) -> FieldError:
    location = found["loc"]
    if not location:
        return FieldError(at, "must be a JSON object" if at == BODY else "must be an object")
    *parents, last = location
    for parent in parents:
        at = pointer(at, parent)
    if found["type"] == "extra_forbidden":
        return unknown_member(at, last)
    return FieldError(pointer(at, last), sentence_of(found))


def sentence_of(found: Mapping[str, Any]) -> str:
    """A pydantic error in our words, since its own may quote the input."""
    limits = found.get("ctx", {})
    match found["type"]:
        case "expected":
            return str(found["msg"])
        case "missing":
            return "is missing"
        case "model_type" | "dict_type":
            return "must be an object"
        case "list_type" | "tuple_type":
            return "must be a list"
        case "too_long":
            return f"must have at most {limits['max_length']} items"
        case "too_short":
            return "must not be empty"
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return "must be a whole number"
        case "bool_parsing" | "bool_type":
            return "must be true or false"
        case "greater_than_equal":
            return f"must be at least {limits['ge']}"
        case "less_than_equal":
            return f"must be at most {limits['le']}"
        case "enum" | "literal_error":
            return "must be one of: " + str(limits["expected"]).replace("'", "").replace(" or ", ", ")
        case _:
            return "is not valid"
