"""Which jobs a caller means: the query of ``GET /v1/jobs``, and the ``filter`` of an operation. Declared once, for both."""

from collections.abc import Iterator
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, PlainValidator

from api.http.invalid import BODY, in_query, is_name, refuse
from api.http.members import Body, Expected, Text, checked, expected
from api.jobs.request import MOST_MODEL_CHARS, metadata_of, time_ms
from api.openapi import Schema, query, schemas_of
from shared.api_key import KEY_ID
from shared.errors import JOB_ERROR_CODES, FieldError
from shared.job import JobState
from shared.job_filter import JobFilter

_METADATA: Final = "metadata"


def _code(code: object) -> object:
    if code not in JOB_ERROR_CODES:
        raise expected("must be one of: " + ", ".join(JOB_ERROR_CODES))
    return code


_Time = Annotated[
    int | None,
    PlainValidator(time_ms, json_schema_input_type=str),
    Field(json_schema_extra={"format": "date-time"}),
]


class JobFilterRequest(Body):
    """Jobs that meet all conditions. Items of batches only with ``batch_id``."""

    status: Annotated[JobState | None, Expected("must be one of: " + ", ".join(JobState))] = None
    """Where the jobs are."""
    model: Annotated[str | None, Text(1, MOST_MODEL_CHARS)] = None
    """The model that was asked for."""
    tag: Annotated[str | None, Text(1, 64)] = None
    """One of the jobs' tags."""
    metadata: Annotated[dict[str, Annotated[str, Text()]], BeforeValidator(metadata_of)] = Field(default_factory=dict)
    """Members of the jobs' metadata, each with its whole value."""
    end_user: Annotated[str | None, Text(1, 64)] = None
    """The end user that the jobs are for."""
    key_id: Annotated[
        str | None, Field(pattern=f"^{KEY_ID.pattern}$"), Expected("must be the id of an API key, key_…")
    ] = None
    """The API key that submitted the jobs."""
    error_code: Annotated[str | None, BeforeValidator(_code)] = None
    """The ``error.code`` of failed jobs."""
    created_after_ms: Annotated[_Time, Field(alias="created_after")] = None
    """Created at this time (RFC 3339) or later."""
    created_before_ms: Annotated[_Time, Field(alias="created_before")] = None
    """Created before this time (RFC 3339)."""
    batch_id: Annotated[str | None, Text()] = None
    """Items of this batch, the last line first; without it there are no items of batches."""

    @property
    def wanted(self) -> JobFilter:
        """The filter that this asks for."""
        return JobFilter(**{name: getattr(self, name) for name in type(self).model_fields})


def filter_of_query(parameters: list[tuple[str, str]]) -> JobFilter:
    """The filter in a query. Parameters that it does not know are not looked at. Raises InvalidRequest."""
    asked: dict[str, Any] = {}
    errors: list[FieldError] = []
    for name, text in parameters:
        outer, is_inner, member = name.partition(".")
        members, at = (asked.setdefault(outer, {}), member) if is_inner and outer == _METADATA else (asked, name)
        if members is asked and name not in _NAMES:
            continue
        if at in members:
            errors.append(FieldError(name if is_name(name) else BODY, "must be sent once"))
        members[at] = text
    found, wrong = checked(JobFilterRequest, asked, at="")
    errors += in_query(wrong)
    if found is None or errors:
        raise refuse(*errors)
    return found.wanted


_NAMES: Final = {field.alias or name for name, field in JobFilterRequest.model_fields.items()} - {_METADATA}


def _parameters() -> Iterator[Schema]:
    for name, schema in schemas_of([JobFilterRequest])["JobFilterRequest"]["properties"].items():
        described = schema.pop("description")
        if name == _METADATA:
            described = "metadata.NAME=VALUE, once for each name: " + described
            yield {**query(name, described, schema), "style": "form", "explode": True}
        else:
            yield query(name, described, schema)


FILTER_IN_QUERY: Final = tuple(_parameters())
