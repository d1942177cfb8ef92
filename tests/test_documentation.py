"""The documents match the code: generated parts, endpoints, fields, log events and the commands they show."""

import ast
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args
from urllib.parse import urlsplit

import pytest
import typer.main

from api.app import create_app
from api.http.errors import RefusedBy
from api.http.members import read
from api.jobs.request import Bounds, draft_of
from api.native.complete import completion_draft_of
from api.native.follow_tokens import FollowTokenRequest
from api.native.limits import BudgetView, LimitsOfKey, LimitsOfTenant, LimitsView, LimitView
from api.native.usage import UsageLine
from api.views.job import JobView
from cli.app import app as command_line
from cli.job_options import FILE
from scripts.generate_docs import PARTS, generated, job_options, marked_parts
from shared.errors import JobError
from shared.job import TERMINAL_STATES, TRANSITIONS, Usage
from shared.settings import load_settings, unknown_variables
from shared.waiting import Reason, Shut

ROOT: Final = Path(__file__).resolve().parent.parent
DOCS: Final = sorted((ROOT / "docs").glob("*.md"))
PAGES: Final = [
    *(ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md", *DOCS),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- what is made from the code --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    """If not, run `python -m scripts.generate_docs`."""
    text = page.read_text(encoding="utf-8")
    assert generated(text) == text
    assert text.count("<!-- generated: ") == len(marked_parts(text)), "a mark is not closed"


def test_the_command_line_has_every_option_of_a_job() -> None:
    """If not, run `python -m scripts.generate_docs`."""
    assert FILE.read_text(encoding="utf-8") == job_options()


def test_every_generated_part_stands_in_one_place() -> None:
    """No part is unused."""
    parts = [part for page in DOCS for part in marked_parts(page.read_text(encoding="utf-8"))]
    assert sorted(parts) == sorted(PARTS)


def test_the_state_picture_is_the_table_of_the_life_cycle() -> None:
    """Read from the page, not from the script that drew it."""
    edges = re.findall(r"^    (\S+) --> (\S+): (.+)$", _text("docs/architecture.md"), re.MULTILINE)
    drawn = {(source, target, step) for source, target, names in edges for step in names.split(", ")}
    steps = {(source, target, step) for step, (sources, target) in TRANSITIONS.items() for source in sources}
    assert drawn == steps | {("[*]", "queued", "submit")}
    ends = re.findall(r"^    (\S+) --> \[\*\]$", _text("docs/architecture.md"), re.MULTILINE)
    assert sorted(ends) == sorted(TERMINAL_STATES)


# --- what is written by hand -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    """The API's OpenAPI document."""
    return create_app(load_settings(auth="off")).openapi()


def _rows(text: str, heading: str) -> Iterator[list[str]]:
    """The cells of the tables between a heading and the next one."""
    section = text.split(f"\n{heading}\n", 1)[1]
    for line in re.split(r"\n#+ ", section)[0].splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_every_endpoint_is_documented_with_its_statuses(openapi: dict[str, Any]) -> None:
    """The table has exactly the calls and statuses that the API declares."""
    documented = {}
    for call, *cells in _rows(_text("docs/protocol.md"), "## Endpoints"):
        if found := re.fullmatch(r"`([A-Z]+) (\S+)`", call):
            documented[found[1].lower(), found[2]] = set(re.findall(r"\b[2-5]\d\d\b", " ".join(cells)))
    declared = {
        (method, path): set(operation["responses"])
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    }
    assert documented == declared


def test_every_field_of_a_job_is_documented() -> None:
    """Exactly these, in the job's order."""
    rows = list(_rows(_text("docs/protocol.md"), "### The job"))
    named = [name for cell, *_ in rows[1:] for name in re.findall(r"`(\w+)`", cell)]
    fields = list(JobView.__struct_fields__)
    assert named[: len(fields)] == fields
    page = _text("docs/protocol.md")
    for inner in (*Usage.__struct_fields__, *JobError.__struct_fields__):
        assert f"`{inner}`" in page


def test_every_reason_of_a_wait_is_documented_with_its_members() -> None:
    """Exactly these. An owner is named once."""
    rows = {reason: " ".join(cells) for reason, *cells in _rows(_text("docs/protocol.md"), "### Why a job waits")}
    del rows["`reason`"]
    kinds = {kind.__struct_config__.tag: kind.__struct_fields__ for kind in get_args(Reason)}
    assert rows.keys() == {f"`{tag}`" for tag in kinds}
    for tag, members in kinds.items():
        assert all(f"`{member}`" in rows[f"`{tag}`"] for member in members)
    assert all(f"`{each}`" in rows["`route`"] for each in Shut)


def test_every_member_of_usage_is_documented() -> None:
    """Exactly these, in a row's order."""
    rows = list(_rows(_text("docs/protocol.md"), "### Usage"))
    fields = rows[rows.index(["field", "value"]) + 1 :]
    named = [name for cell, *_ in fields for name in re.findall(r"`(\w+)`", cell)]
    assert named == list(UsageLine.__struct_fields__)


def test_every_member_of_a_limit_is_documented() -> None:
    """Of what is left, and of what refused a submit; and each limit by its name."""
    named = {
        name for cell, *_ in _rows(_text("docs/protocol.md"), "### Limits") for name in re.findall(r"`(\w+)`", cell)
    }
    limits = {*LimitsOfTenant.__struct_fields__, *LimitsOfKey.__struct_fields__} - {"id"}
    for members in (limits, *[kind.__struct_fields__ for kind in (LimitsView, LimitView, BudgetView, RefusedBy)]):
        assert named >= set(members)


def test_every_member_of_a_submit_is_documented(openapi: dict[str, Any]) -> None:
    """The members of ``job`` with their defaults."""
    schemas = openapi["components"]["schemas"]
    rows = {
        name: cells
        for cells in _rows(_text("docs/protocol.md"), "### Submit")
        for name in re.findall(r"`(\w+)`", cells[0])
    }
    for name, schema in schemas["JobOptions"]["properties"].items():
        assert str(schema.get("default", "")) in rows[name][2], name
        for bound in ("minimum", "maximum"):
            assert str(schema.get(bound, "")) in rows[name][1], name
    for name in schemas["JobRequest"]["properties"]:
        assert name in rows


def _log_events() -> Iterator[str]:
    """The first argument of every call of a logger, or the constant beginning of a composed one."""
    for path in [
        path for folder in ("api", "worker", "shared", "cli") for path in sorted((ROOT / folder).rglob("*.py"))
    ]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=logger, attr="debug" | "info" | "warning" | "error" | "exception"),
                    args=[event],
                ) if "log" in ast.unparse(logger).lower():
                    match event:
                        case ast.Constant(value=str(name)) | ast.JoinedStr(values=[ast.Constant(value=str(name)), *_]):
                            yield name
                        case ast.IfExp(body=ast.Constant(value=str(name)), orelse=ast.Constant(value=str(other))):
                            yield name
                            yield other
                        case _:
                            raise AssertionError(f"{path}: an event whose name cannot be read: {ast.unparse(event)}")


def test_every_log_event_is_documented() -> None:
    """An operator can look up every log line."""
    events = set(_log_events())
    assert "worker_started" in events
    named = {
        name for cell, *_ in _rows(_text("docs/operations.md"), "## Logs") for name in re.findall(r"`([^`]+)`", cell)
    }
    for event in events:
        assert any(name == event or (event.endswith("_") and name.startswith(event)) for name in named), event


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    """Only links inside the repository are checked."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "http://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pages
def test_every_named_file_exists(page: Path) -> None:
    """Code in a page that looks like a path of ours must be one."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:api|worker|shared|cli|simulator|bench|tests|scripts|docs)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


# --- the commands in the pages ---------------------------------------------------------------------------------------


def _shell_lines() -> list[str]:
    """Every line of every shell block; users paste blocks line by line."""
    blocks = [
        block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def _calls(line: str) -> list[list[str]]:
    """The simple commands in a line, each as a list of words, including assignments and command substitutions."""
    inner = re.sub(r"^[A-Z_]+=\$\((.*)\)$", r"\1", line)
    calls: list[list[str]] = [[]]
    lexer = shlex.shlex(inner, posix=True, punctuation_chars="|;&")
    lexer.whitespace_split = True
    for word in lexer:
        if set(word) <= set("|;&"):
            calls.append([])
        else:
            calls[-1].append(word)
    return [[word for word in call if not re.match(r"[A-Z_]+=", word) or call[0] == "make"] for call in calls if call]


def test_there_are_commands_to_check() -> None:
    """Otherwise the tests below would test nothing."""
    programs = {call[0].rpartition("/")[2] for line in _shell_lines() for call in _calls(line)}
    of_users = {"make", "curl", "grep", "head", "tail", "cut", "docker", "export", "git", "redis-cli", "valkey-server"}
    assert programs == of_users | {"tokenspool", "python", "set-up"}


@pytest.mark.parametrize("line", _shell_lines())
def test_every_shell_line_is_valid(line: str) -> None:
    """As far as this can be checked without running it."""
    checked = subprocess.run(["sh", "-n", "-c", line], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for program, *words in _calls(line):
        match program.rpartition("/")[2]:
            case "make":
                _check_make(words)
            case "tokenspool":
                _check_tokenspool(words)
            case "curl":
                _check_curl(words)
            case "python":
                assert (ROOT / words[0]).exists(), words[0]


def _check_make(words: list[str]) -> None:
    targets = [word for word in words if "=" not in word]
    for target in targets:
        assert re.search(rf"^{target}:", _text("Makefile"), re.MULTILINE), target
    for word in words:
        name, is_assignment, value = word.partition("=")
        if is_assignment:
            assert name == "ARGS"
            assert targets == ["run"]
            _check_tokenspool(["dev", *shlex.split(value)])


def _check_tokenspool(words: list[str]) -> None:
    """Typer parses the arguments without running the command. Raises what a user would see."""
    command: Any = typer.main.get_command(command_line)
    rest = list(words)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    command.make_context("", rest)


def _check_curl(words: list[str]) -> None:
    """The API serves the path and accepts the body."""
    (url,) = [urlsplit(word) for word in words if word.startswith("http://")]
    assert url.netloc in ("127.0.0.1:8000", "127.0.0.1:8001"), "of make run, or of an API that a page starts beside it"
    path = re.sub(r"\$JOB|job_[0-9a-z]{26}", "{job_id}", url.path).replace("$BATCH", "{batch_id}")
    assert path in create_app(load_settings(auth="off")).openapi()["paths"], path
    if "--json" in words:
        body = json.loads(words[words.index("--json") + 1])
        match path.rpartition("/")[2]:
            case "jobs":
                draft_of(body, default_model="a-model", bounds=Bounds(1000))
            case "follow-token":
                read(FollowTokenRequest, body)
            case _:
                completion_draft_of(body, model="a-model")


def test_every_variable_that_is_mentioned_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a page, the compose file or an example: setting it causes no warning."""
    places = [*PAGES, ROOT / "docker-compose.yml", *(ROOT / "examples").glob("*.*")]
    texts = [place.read_text(encoding="utf-8") for place in places]
    for name in {name for text in texts for name in re.findall(r"\bTOKENSPOOL_[A-Z_]*[A-Z]\b", text)}:
        monkeypatch.setenv(name, "1")
    assert unknown_variables() == {}


def test_other_commands_that_the_pages_name_exist() -> None:
    """``tokenspool x`` and ``make x`` in text."""
    commands = set(typer.main.get_command(command_line).commands)  # type: ignore[attr-defined]
    makefile = _text("Makefile")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(?:\.venv/bin/)?tokenspool (\w+)", text):
            assert name in commands, f"{page.name}: tokenspool {name}"
        for name in re.findall(r"`make (\w+)", text):
            assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"{page.name}: make {name}"
