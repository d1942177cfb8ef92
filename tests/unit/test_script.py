"""Scripts: how their text is put together, and that each call gives what the script's first lines name."""

import ast
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

from shared.store.script import NAMES, script

_STORE: Final = Path(str(files("shared.store")))
_LUA: Final = _STORE / "lua"


def _code_of(path: Path) -> str:
    """Without comments."""
    return re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))


def test_arguments_have_names_in_lua() -> None:
    """Only the head that is made from these names knows where each stands."""
    assert [path.name for path in _LUA.rglob("*.lua") if "ARGV" in _code_of(path)] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_script_uses_each_of_its_arguments(name: str) -> None:
    """What nobody uses is not sent."""
    code = _code_of(_LUA / f"{name}.lua")
    arguments = [*script(name).args, *filter(None, [script(name).rest])]
    assert [each for each in arguments if not re.search(rf"\b{each}\b", code)] == []
    assert len(set(arguments)) == len(arguments)


def test_every_call_names_the_arguments_of_its_script() -> None:
    """The type checker cannot know the names, which are written in Lua; this test reads the calls as it would."""
    called = set()
    for path in _STORE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            match node:
                case ast.Call(
                    ast.Attribute(attr="run" | "run_impatiently"), [ast.Constant(str(name)), *positional], keywords
                ):
                    given = {keyword.arg for keyword in keywords} - {None}
                    known = {*script(name).args, script(name).rest} - {""}
                    assert not positional
                    assert given <= known if None in {keyword.arg for keyword in keywords} else given == known, name
                    called.add(name)
    assert called == set(NAMES)


def test_a_call_with_other_names_fails_before_redis_sees_it() -> None:
    """As a function would."""
    in_order = script("attend").in_order
    assert in_order({"believed_ms": 5, "name": "api-1", "followers": 2}) == ("api-1", 5, 2)
    with pytest.raises(TypeError, match="attend needs 'believed_ms'"):
        in_order({"name": "api-1", "followers": 2})
    with pytest.raises(TypeError, match=r"attend takes no \{'names'\}"):
        in_order({"name": "api-1", "believed_ms": 5, "followers": 2, "names": ["api-2"]})
    in_order = script("renew").in_order
    assert in_order({"lease_ms": 1, "sources": "running", "claims": ["a", 1]}) == (1, "running", "a", 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_has_room_for_more_local_names(name: str) -> None:
    """Lua takes 200 in a chunk; beyond them Redis refuses the script."""
    declared = re.findall(r"^local (?:function )?([\w, ]+)", script(name).text.decode(), re.MULTILINE)
    assert sum(len(names.split(", ")) for names in declared) <= 180


def test_every_part_of_the_library_is_used_and_no_line_is_too_long() -> None:
    """A part that nobody names is dead."""
    texts = {path: path.read_text(encoding="utf-8") for path in _LUA.rglob("*.lua")}
    used = {
        part for text in texts.values() for line in re.findall(r"^-- uses: (.*)", text) for part in line.split(", ")
    }
    assert used | {"head"} == {path.stem for path in texts if path.parent.name == "lib"}
    assert [path.name for path, text in texts.items() if max(map(len, text.splitlines())) > 120] == []


def test_a_script_can_be_read_as_redis_runs_it() -> None:
    """For whoever debugs one: an error of Redis names a line of this text."""
    command = [sys.executable, "-m", "shared.store.script", "attend"]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    assert printed == script("attend").text
    assert subprocess.run([*command[:-1], "no-such"], capture_output=True, check=False).returncode == 2
