"""The options of a job and of a batch, and the conditions by which jobs are found, as options of commands.

They are declared once, in api/jobs/, which needs half a second of imports. So `python -m scripts.generate_docs` writes what a
command line needs of them to job_options.json.
"""

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli.errors import CommandError, utf8

FILE: Final = Path(__file__).with_name("job_options.json")

Options = Mapping[str, Any]
"""Name in a batch's query (``timeout_s``, ``webhook.url``) → value, for the options that were given."""

Rows = Sequence[Mapping[str, Any]]

_enum: Final[Any] = StrEnum  # mypy knows only those whose members are written out
_KINDS: Final[dict[str, Any]] = {"integer": int, "text": str, "flag": bool, "list": list[str], "pairs": list[str]}


def takes_job_options(of: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of a ``job`` or a ``batch``. It gets those that were given as ``options``."""
    return _takes(_rows(of), panel="Options of the job")


def takes_filter(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the conditions of `jobs list` and of operations, as ``options``."""
    return _takes(_rows("filter"), panel="Conditions, all of which the jobs meet")(command)


def _rows(of: str) -> Rows:
    rows: Rows = json.loads(FILE.read_text(encoding="utf-8"))[of]
    return rows


def _takes(rows: Rows, *, panel: str) -> Callable[[Callable[..., None]], Callable[..., None]]:

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = [(row, given.pop(_parameter_of(row))) for row in rows]
            options = {row["name"]: _value(row, value) for row, value in values if value not in (None, [])}
            command(**given, options=options)

        own = inspect.signature(command)
        parameters = [parameter for name, parameter in own.parameters.items() if name != "options"]
        parameters += [
            inspect.Parameter(
                _parameter_of(row), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(row, panel)
            )
            for row in rows
        ]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return with_options


def as_body(options: Options) -> dict[str, Any]:
    """The member ``job`` of a JSON body."""
    body: dict[str, Any] = {}
    for name, value in options.items():
        outer, is_inner, inner = name.partition(".")
        if is_inner:
            body.setdefault(outer, {})[inner] = value
        else:
            body[name] = value
    return body


def as_query(options: Options) -> dict[str, Any]:
    """The same as query parameters. Raises CommandError for a list that they cannot carry."""
    query: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            query |= {f"{name}.{inner}": text for inner, text in value.items()}
        elif isinstance(value, list):
            if any("," in item for item in value):
                raise CommandError(
                    f"{_flag_of(name, is_list=True)} must not have a comma: give the option once for each.", 2
                )
            query[name] = ",".join(value)
        else:
            query[name] = value
    return query


def _annotation(row: Mapping[str, Any], panel: str) -> Any:
    kind = _KINDS[row["kind"]]
    if "values" in row:
        one_of: Any = _enum("OneOf", [(value, value) for value in row["values"]])  # typer takes no list of Literal
        kind = list[one_of] if row["kind"] == "list" else one_of
    option = typer.Option(
        _flag_of(row["name"], is_list=row["kind"] == "list"),
        min=row.get("least"),
        max=row.get("most"),
        metavar="NAME=VALUE" if row["kind"] == "pairs" else None,
        help=row["help"],
        rich_help_panel=panel,
        show_default=False,
    )
    return Annotated[kind | None, option]


def _parameter_of(row: Mapping[str, Any]) -> str:
    return str(row["name"]).replace(".", "_")


def _flag_of(name: str, *, is_list: bool) -> str:
    return "--" + (name.removesuffix("s") if is_list else name).replace(".", "-").replace("_", "-")


def _value(row: Mapping[str, Any], given: Any) -> Any:
    if row["kind"] == "pairs":
        pairs = [utf8(row["name"], pair).partition("=") for pair in given]
        if not all(is_pair for _, is_pair, _ in pairs):
            raise CommandError(f"{_flag_of(row['name'], is_list=False)} must be NAME=VALUE.", 2)
        return {name: value for name, _, value in pairs}
    if isinstance(given, list):
        return [utf8(row["name"], text) for text in given]
    return utf8(row["name"], given) if isinstance(given, str) else given
