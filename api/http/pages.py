"""The query parameter ``limit``, in which all lists are alike."""

import re
from typing import Annotated, Final

from fastapi import Query
from pydantic import BeforeValidator

from api.http.members import expected

_DIGITS: Final = re.compile(r"[0-9]{1,4}", re.ASCII)


def _digits(text: object) -> object:
    """Python's integers may also be ``+5``, ``1_0``, `` 5`` and ``5.0``."""
    if isinstance(text, str) and not _DIGITS.fullmatch(text):
        raise expected("must be a whole number of 1 to 4 digits")
    return text


DIGITS: Final = BeforeValidator(_digits)
"""After the bounds in an annotation: before them, the OpenAPI document would not have them."""
Limit = Annotated[int, Query(ge=1, le=100), DIGITS]
DEFAULT_LIMIT: Final = 20
