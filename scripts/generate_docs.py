"""Writes the generated parts of docs/: pictures and tables between `<!-- generated: … -->` marks.

`python -m scripts.generate_docs` rewrites them; with `--check` it changes nothing and names the files that are out of
date. tests/test_documentation.py checks that none is. A table's text is written once, in the code that it describes.
"""

import ast
import functools
import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, get_args, get_origin

import typer.main
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from api.batches.items import BatchLine, BatchOptions
from api.http.members import Body
from api.http.rotation import RotateRequest
from api.jobs.filter import JobFilterRequest
from api.jobs.request import JobOptions, JobRequest, JobWebhook
from api.native.complete import CompletionRequest
from api.native.follow_tokens import FollowTokenRequest
from api.native.operations import OperationRequest
from api.openapi import schemas_of
from api.ops.api_keys import KeyChange, KeyRequest, LimitsRequest
from api.ops.tenants import TenantRequest
from cli import job_options as options_of_commands
from shared import errors, events, job, settings
from shared.store import redis_keys
from simulator import words

ROOT: Final = Path(__file__).resolve().parent.parent
DOCS: Final = ROOT / "docs"

_MARKED: Final = re.compile(r"(<!-- generated: ([a-z-]+)[^>]*-->\n).*?(<!-- end of generated -->)", re.DOTALL)


def generated(text: str) -> str:
    """The text with all its marked parts generated anew. Raises KeyError for an unknown part."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", text)


def marked_parts(text: str) -> list[str]:
    """The names of the marked parts in a text."""
    return [found[2] for found in _MARKED.finditer(text)]


# --- states ----------------------------------------------------------------------------------------------------------


def state_picture() -> str:
    """Every state and every step of TRANSITIONS, as a mermaid diagram."""
    steps: dict[tuple[str, str], list[str]] = {}
    for step, (sources, target) in job.TRANSITIONS.items():
        for source in job.JobState:  # in the order of the states: a set has none
            if source in sources:
                steps.setdefault((source.value, target.value), []).append(step.value)
    lines = ["stateDiagram-v2", "    [*] --> queued: submit"]
    lines += [f"    {source} --> {target}: {', '.join(names)}" for (source, target), names in steps.items()]
    lines += [f"    {state.value} --> [*]" for state in job.JobState if state in job.TERMINAL_STATES]
    return "```mermaid\n" + "\n".join(lines) + "\n```"


def state_table() -> str:
    """What each state means."""
    meanings = _attribute_docs(job, "JobState")
    return _table(("state", "what it means"), [(f"`{state.value}`", meanings[state.name]) for state in job.JobState])


# --- the store -------------------------------------------------------------------------------------------------------


def key_table() -> str:
    """Every key, with its type, what it holds and how long it lives."""
    return _table(("key", "what it is, and how long it lives"), _names(redis_keys.KEYS | redis_keys.GLOBAL_KEYS))


def channel_table() -> str:
    """Every pub/sub channel."""
    return _table(("channel", "what is published"), _names(redis_keys.CHANNELS))


def _names(names: dict[str, tuple[tuple[str, ...], str]]) -> list[tuple[str, ...]]:
    return [
        (f"`{redis_keys.prefix_of(kind)}{':'.join((kind, *(f'<{argument}>' for argument in arguments)))}`", meaning)
        for kind, (arguments, meaning) in names.items()
    ]


# --- the wire --------------------------------------------------------------------------------------------------------


def event_table() -> str:
    """Our events. The terminal ones have the names of the states."""
    meanings = _attribute_docs(events, "OurEvent")
    rows = [(f"`{event.value}`", meanings[event.name]) for event in events.OurEvent]
    endings = ", ".join(f"`{state.value}`" for state in job.JobState if state in job.TERMINAL_STATES)
    return _table(("event", "when, and its fields"), [*rows, (endings, "The end; `data` is the job. Nothing follows.")])


def reset_reasons() -> str:
    """The reasons of a reset."""
    return ", ".join(f"`{reason}`" for reason in events.RESET_REASONS)


def problem_table() -> str:
    """Every code that a problem document can have."""
    rows = [
        (str(kind.status), f"`{kind.code}`", inspect.cleandoc(kind.__doc__ or ""), _retry_after(kind))
        for kind in sorted(_kinds(errors.Problem), key=lambda kind: kind.status)
    ]
    return _table(("status", "code", "when", "Retry-After"), rows)


def job_error_table() -> str:
    """Every code that a job's error can have."""
    return _table(("code", "when"), [(f"`{code}`", meaning) for code, meaning in errors.JOB_ERROR_CODES.items()])


def member_table(model: type[Body]) -> str:
    """The members of a body, its own before those that it shares with others. Those that mean the same are one row."""
    schemas = schemas_of([model])
    schema = schemas[model.__name__]
    shared = {name for parent in model.__mro__[1:] for name in vars(parent).get("__annotations__", {})}
    rows: dict[tuple[str, str], list[str]] = {}
    for name, member in sorted(schema["properties"].items(), key=lambda item: item[0] in shared):
        default = "" if "default" not in member else f"`{json.dumps(member['default'])}`"
        needed = "needed" if name in schema.get("required", ()) else default
        value = ". ".join(part for part in (_value(member, schemas), member.get("description")) if part)
        rows.setdefault((value, needed), []).append(f"`{name}`")
    return _table(("member", "value", "default"), [(", ".join(names), *cells) for cells, names in rows.items()])


def _value(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """What a member may be, in a few words."""
    if "$ref" in schema:
        return _value(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema:
        return " or ".join(_value(part, schemas) for part in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join(_value_of_kind(kind, schema, schemas) for kind in kinds)


def _value_of_kind(kind: str, schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    match kind:
        case "integer":
            return f"{schema['minimum']} to {schema['maximum']}"
        case "number":
            return f"a number above 0, at most {schema['maximum']}"
        case "boolean":
            return "true or false"
        case "string" if schema.get("format") == "date-time":
            return "a time with its offset"
        case "string":
            return "a text" + _size(schema.get("minLength", 0), schema.get("maxLength"), "characters")
        case "array":
            items = _value(schema["items"], schemas)
            return f"a list of some of {items}" if items.startswith("`") else "a list"
        case "object":
            return "an object" + _size(0, schema.get("maxProperties"), "members")
        case _:
            return "null"


def _size(least: int, most: int | None, what: str) -> str:
    if most is None:
        return ""
    return f" of {least} to {most} {what}" if least else f" of at most {most} {what}"


def _kinds(parent: type[errors.Problem]) -> list[type[errors.Problem]]:
    return [kind for child in parent.__subclasses__() for kind in (child, *_kinds(child))]


def _retry_after(kind: type[errors.Problem]) -> str:
    return "" if kind.retry_after_s is None else f"{kind.retry_after_s} s"


# --- settings --------------------------------------------------------------------------------------------------------


def setting_table() -> str:
    """Every setting."""
    meanings = _attribute_docs(settings, "Settings")
    rows = [
        (f"`{settings.variable_of(name)}`", _expected(name, field), _default(name, field), meanings[name])
        for name, field in settings.Settings.model_fields.items()
    ]
    return _table(("variable", "value", "default", "what it is for, and when to change it"), rows)


_UNITS: Final = {"_s": "seconds", "_bytes": "bytes", "_chars": "characters"}


def _expected(name: str, field: FieldInfo) -> str:
    annotation = _without_none(field.annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if annotation is settings.Auth:
        return ", ".join(f"`{value.value}`" for value in settings.Auth)
    if get_origin(annotation) is dict:
        return "JSON"
    if annotation not in (int, float):
        return "secret" if annotation is SecretStr else "text" if "url" not in name else "URL"
    unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
    kind = unit or ("whole number" if annotation is int else "number")
    bounds = _bounds(field)
    return f"{kind}, {bounds}" if bounds else kind


def _without_none(annotation: Any) -> Any:
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if type(None) in get_args(annotation) and len(kinds) == 1 else annotation


def _bounds(field: FieldInfo) -> str:
    limits = {name: getattr(part, name) for part in field.metadata for name in _SIGNS if hasattr(part, name)}
    return ", ".join(f"{_SIGNS[name]} {limit}" for name, limit in limits.items())


_SIGNS: Final = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def _default(name: str, field: FieldInfo) -> str:
    value = field.default
    assert value is not PydanticUndefined, name
    if value is None:
        return "unset"
    if name.endswith("_bytes"):
        return f"`{value}` ({value >> 20} MiB)"
    return f"`{value}`"


# --- the command line ------------------------------------------------------------------------------------------------


def job_options() -> str:
    """What cli/job_options.json holds: the options of a job and of a batch, and the conditions of a filter, one in a line."""
    schemas = schemas_of([JobOptions, BatchOptions, JobFilterRequest])
    forms = {"job": "JobOptions", "batch": "BatchOptions", "filter": "JobFilterRequest"}
    lists = [
        f"{json.dumps(form)}: [\n" + ",\n".join(map(json.dumps, _options_of(schemas[name], schemas))) + "\n]"
        for form, name in forms.items()
    ]
    return "{\n" + ",\n".join(lists) + "\n}\n"


def _options_of(model: dict[str, Any], schemas: dict[str, Any], prefix: str = "") -> Iterable[dict[str, Any]]:
    for name, member in model["properties"].items():
        schema = _resolved(member, schemas)
        if "properties" in schema:
            yield from _options_of(schema, schemas, f"{prefix}{name}.")
        elif "const" not in schema:
            meaning = _cell(member["description"]).replace("`", "")
            default = member.get("default")
            default_text = "" if default in (None, [], False) else f" Default: {_shown(default)}."
            yield {"name": prefix + name, **_option_of(schema, schemas), "help": meaning + default_text}


def _option_of(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    match schema["type"]:
        case "integer":
            return {"kind": "integer", "least": schema["minimum"], "most": schema["maximum"]}
        case "array":
            return {**_option_of(_resolved(schema["items"], schemas), schemas), "kind": "list"}
        case "object":
            return {"kind": "pairs"}
        case "boolean":
            return {"kind": "flag"}
        case _:
            return {"kind": "text", **({"values": schema["enum"]} if "enum" in schema else {})}


def _resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema itself for a reference to it, and for one that null is an alternative of."""
    if "anyOf" in schema:
        schema = next(part for part in schema["anyOf"] if part.get("type") != "null")
    return schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def command_list() -> str:
    """Every command with its arguments and options."""
    from cli.app import app as command_line  # not earlier: it reads the options that are written here

    return "\n\n".join(_commands_of(typer.main.get_command(command_line), "tokenspool"))


def _commands_of(command: Any, path: str) -> Iterable[str]:
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _commands_of(inner, f"{path} {name}")
    if not hasattr(command, "commands"):
        shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        arguments = [_name_of_parameter(parameter) for parameter in shown if parameter.param_type_name == "argument"]
        yield f"### `{' '.join((path, *arguments))}`\n\n{inspect.cleandoc(command.help)}"
        yield _table(("argument or option", "value", "what it is"), map(_parameter_row, shown))


def _parameter_row(parameter: Any) -> tuple[str, str, str]:
    default = parameter.default if parameter.default not in (None, False, "") else None
    meaning = f"{parameter.help or ''} {'' if default is None else f'Default: `{default}`.'}"
    value = "" if getattr(parameter, "is_flag", False) else _value_of_parameter(parameter)
    return f"`{_name_of_parameter(parameter)}`", value, meaning


def _name_of_parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return ", ".join(parameter.opts)


_VALUES: Final[dict[Any, str]] = {str: "text", int: "whole number", float: "number", Path: "path"}


def _value_of_parameter(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    is_list = get_origin(annotation) is list
    (kind,) = get_args(annotation) if is_list else (annotation,)
    value = _VALUES[kind] if kind in _VALUES else ", ".join(f"`{member.value}`" for member in kind)
    if parameter.min is not None:
        value += f", ≥ {parameter.min:,}" + (f", ≤ {parameter.max:,}" if parameter.max is not None else "")
    return f"{parameter.metavar or value}; may be repeated" if is_list else value


# --- the simulator ---------------------------------------------------------------------------------------------------


def simulator_words() -> str:
    """Every word of the simulator."""
    return "\n\n".join(
        f"**{kind.name.capitalize()}**: {kind.value}.\n\n" + _table(("for example", "what happens"), _words_of(kind))
        for kind in words.Kind
    )


def _words_of(kind: words.Kind) -> Iterable[tuple[str, str]]:
    for row in words.ROWS:
        if row.kind is kind:
            yield f"`{row.example}`", row.meaning
            if row.name == "odd":
                yield from ((f"`odd={name}`", meaning) for name, meaning in words.ODD.items())
    if kind is words.Kind.ANSWER:
        yield "`echo: any text`", "the rest of the prompt is the answer"


# --- how it is written -----------------------------------------------------------------------------------------------


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`")).replace("|", r"\|").strip()


def _attribute_docs(module: ModuleType, class_name: str) -> dict[str, str]:
    """Attribute → its docstring. Raises KeyError for an unknown class."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return dict(_documented(node.body))
    raise KeyError(class_name)


def _documented(body: list[ast.stmt]) -> Iterable[tuple[str, str]]:
    for statement, following in itertools.pairwise(body):
        match statement, following:
            case (
                ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, inspect.cleandoc(text)


MODELS: Final[dict[str, type[Body]]] = {
    "submit": JobRequest,
    "job": JobOptions,
    "webhook": JobWebhook,
    "batch-line": BatchLine,
    "completion": CompletionRequest,
    "filter": JobFilterRequest,
    "operation": OperationRequest,
    "key": KeyRequest,
    "key-limits": LimitsRequest,
    "key-change": KeyChange,
    "tenant": TenantRequest,
    "rotation": RotateRequest,
    "follow-token": FollowTokenRequest,
}
"""The bodies, and the objects in them, whose members the documents list."""

PARTS: Final[dict[str, Callable[[], str]]] = {
    "state-picture": state_picture,
    "states": state_table,
    "keys": key_table,
    "channels": channel_table,
    "events": event_table,
    "reset-reasons": reset_reasons,
    "problems": problem_table,
    "job-errors": job_error_table,
    "settings": setting_table,
    "commands": command_list,
    "simulator-words": simulator_words,
    **{f"members-of-{name}": functools.partial(member_table, model) for name, model in MODELS.items()},
}


def stale_files() -> Iterable[tuple[Path, str]]:
    """The files that are not as the code has them, and what they should hold."""
    made: list[tuple[Path, Callable[[str], str]]] = [(options_of_commands.FILE, lambda _: job_options())]
    for path, text_of in (*made, *((page, generated) for page in sorted(DOCS.glob("*.md")))):
        before = path.read_text(encoding="utf-8")
        if (after := text_of(before)) != before:
            yield path, after


def main(arguments: list[str]) -> int:
    """Rewrite, or check. Returns the exit code."""
    is_check = "--check" in arguments
    stale = []
    for path, text in stale_files():
        stale.append(str(path.relative_to(ROOT)))
        if not is_check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(("out of date: " if is_check else "rewritten: ") + ", ".join(stale))
    return 1 if stale and is_check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
