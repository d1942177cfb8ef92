"""The parts of which request bodies are declared: pydantic models whose members each have one sentence for all errors.

A body is declared once, as a Body. That makes its validation, the pointers and sentences of a 400, its schema in the
OpenAPI document, and its table in docs/protocol.md. The input is plain JSON values, which strict_json.py has read.
"""

from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from api.http.invalid import BODY, EXPECTED, MOST_ERRORS, fields_of, refuse
from shared.errors import FieldError

B = TypeVar("B", bound="Body")

_MANY_MEMBERS: Final = 64
"""More than any body of ours has, and few enough to name all of them."""


class Body(BaseModel):
    """A request body, or an object in one. An unknown member is refused, so that a misspelt one is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _few_unknown(cls, body: Any) -> Any:
        """Of thousands of unknown members pydantic would make an error each: it sees as many as are named, and one more."""
        if type(body) is not dict or len(body) <= _MANY_MEMBERS or cls.model_config.get("extra") != "forbid":
            return body
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [name for name in body if name not in known]
        return {name: body[name] for name in (*(known & body.keys()), *unknown[: MOST_ERRORS + 1])}


def checked(
    model: type[B], body: object, context: object = None, *, at: str = BODY
) -> tuple[B | None, list[FieldError]]:
    """The body as its model, or None and what is wrong with it. ``context``: the settings that bound members; ``at``:
    the pointer of the body itself.
    """
    try:
        return model.model_validate(body, context=context), []
    except ValidationError as error:
        return None, fields_of(error, at)


def read(model: type[B], body: object, context: object = None, *, at: str = BODY) -> B:
    """The body as its model. Raises InvalidRequest, which names every field that is not valid."""
    found, errors = checked(model, body, context, at=at)
    if found is None:
        raise refuse(*errors)
    return found


def expected(sentence: str) -> PydanticCustomError:
    """The error for a validator to raise. The sentence is read after the member's name."""
    return PydanticCustomError(EXPECTED, "{sentence}", {"sentence": sentence})


@dataclass(frozen=True)
class Expected:
    """The sentence for every error of the member, or inside it."""

    sentence: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _saying(self.sentence, handler(source))


@dataclass(frozen=True)
class Whole:
    """A whole number, both bounds included. ``1024.0`` is taken as 1024: JSON has one kind of number."""

    least: int
    most: int
    or_null: bool = False

    def __get_pydantic_core_schema__(self, _source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        # A strict float takes 1024 and 1024.0, but neither true nor "1024".
        number = core_schema.float_schema(strict=True)
        whole: CoreSchema = core_schema.chain_schema([number, core_schema.int_schema(ge=self.least, le=self.most)])
        sentence = f"must be a whole number from {self.least} to {self.most}"
        if self.or_null:
            whole, sentence = core_schema.nullable_schema(whole), f"{sentence}, or null"
        return _saying(sentence, whole)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        kind = ["integer", "null"] if self.or_null else "integer"
        return {"type": kind, "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class Text:
    """A text of ``least`` to ``most`` characters."""

    least: int = 0
    most: int | None = None
    is_printable: bool = False

    def __get_pydantic_core_schema__(self, _source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        text: CoreSchema = core_schema.str_schema(strict=True, min_length=self.least or None, max_length=self.most)
        if self.is_printable:
            text = core_schema.no_info_after_validator_function(_printable, text)
        return _saying(self._sentence, text)

    @property
    def _sentence(self) -> str:
        characters = "printable characters" if self.is_printable else "characters"
        if self.most is None:
            return "must be a text that is not empty" if self.least else "must be a text"
        size = f"{self.least} to {self.most}" if self.least else f"at most {self.most}"
        return f"must be a text of {size} {characters}"


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


def _saying(sentence: str, schema: CoreSchema) -> CoreSchema:
    return core_schema.custom_error_schema(schema, EXPECTED, custom_error_message=sentence)
