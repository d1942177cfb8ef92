"""The rules of the code: who may import whom, each key's lifetime, and what no committed file may contain."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from shared.job import Step
from shared.store import redis_keys
from shared.store.runtime import Runtime
from tests.support.builders import an_answer
from tests.support.store import SUCCESS, claim_one, kind_of, submit

ROOT: Final = Path(__file__).resolve().parent.parent

_OURS: Final = frozenset({"api", "worker", "shared", "cli", "simulator", "bench", "tests", "scripts"})

_MAY_IMPORT: Final[dict[str, frozenset[str]]] = {
    "shared": frozenset({"shared"}),
    "api": frozenset({"api", "shared"}),
    "worker": frozenset({"worker", "shared"}),
    "simulator": frozenset({"simulator"}),
}
"""Folder → our packages that it may import. Other folders (cli, bench, tests, scripts) may import all of them."""

_WEB: Final = ("api",)
_AT_HOME: Final[dict[str, tuple[str, ...]]] = {
    "redis": ("shared/store",),
    "hiredis": ("shared/store",),
    "arq": ("worker/arq_worker.py",),
    "anthropic": ("worker/providers",),
    "openai": ("worker/providers",),
    "fastapi": _WEB,
    "starlette": _WEB,
    "uvicorn": ("api/edge",),
    "aiohttp": ("worker/providers",),
    "sse_starlette": _WEB,
}
"""Library → the only places in _MAY_IMPORT's folders that may import it."""

_LAYERS: Final[dict[str, int]] = {
    "app": 8,
    "loops": 7,
    "edge": 7,
    "native": 6,
    "anthropic_compat": 6,
    "ops": 6,
    "jobs": 5,
    "batches": 5,
    "streams": 4,
    "views": 3,
    "dependencies": 2,
    "openapi": 2,
    "http": 1,
    "state": 0,
}
"""Place in api/ → its floor, as api/README.md has them. A place imports from its own floor or from a lower one."""


def _imports_of(path: Path) -> Iterator[str]:
    """The dotted names of everything that a file imports, at any place in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


@pytest.mark.parametrize("folder", _MAY_IMPORT)
def test_a_part_imports_only_what_it_may(folder: str) -> None:
    """api → shared ← worker; the simulator stands alone."""
    for path in _sources(folder):
        for name in _imports_of(path):
            root = name.partition(".")[0]
            assert root not in _OURS or root in _MAY_IMPORT[folder], f"{path.relative_to(ROOT)} imports {name}"


def test_the_api_has_floors_and_nobody_imports_upward() -> None:
    """A module depends only on lower floors; see api/README.md."""
    places = {
        path.name.removesuffix(".py") for path in (ROOT / "api").iterdir() if (path.suffix == ".py" or path.is_dir())
    }
    assert {place for place in places if not place.startswith(("_", "."))} == set(_LAYERS)
    upward = []
    for path in _sources("api"):
        own = path.relative_to(ROOT / "api").parts[0].removesuffix(".py")
        for name in _imports_of(path):
            root, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if root == "api" and _LAYERS[other] > _LAYERS.get(own, 9):
                upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert upward == []


@pytest.mark.parametrize("library", _AT_HOME)
def test_a_library_is_known_in_one_place(library: str) -> None:
    """One place knows Redis, one arq, one the LLM's SDK, one the web framework; cli wires them."""
    for path in [path for folder in _MAY_IMPORT for path in _sources(folder)]:
        place = path.relative_to(ROOT).as_posix()
        if library in {name.partition(".")[0] for name in _imports_of(path)}:
            assert place.startswith(_AT_HOME[library]), f"{place} imports {library}"


def test_redis_is_asked_in_the_store_alone() -> None:
    """What others want of it is a method with a name. An import shows in the test above; here it is the access that counts."""
    for path in [path for folder in (*_MAY_IMPORT, "cli") for path in _sources(folder)]:
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith("shared/store/"):
            for node in ast.walk(ast.parse(path.read_bytes())):
                assert not (isinstance(node, ast.Attribute) and node.attr in {"_commands", "_urgent"}), place
            assert not [name for name in _imports_of(path) if name.startswith("shared.store.commands")], place


def test_what_a_job_is_does_not_know_where_it_is_stored() -> None:
    """The modules of shared/ do not import shared/store/, which imports them."""
    for path in (ROOT / "shared").glob("*.py"):
        assert not [name for name in _imports_of(path) if name.startswith("shared.store")], path.name


@pytest.mark.parametrize(
    ("entry", "strangers"),
    [
        ("api.app", {"worker", "cli", "arq", "anthropic", "openai", "aiohttp"}),
        ("worker.app", {"api", "cli", "fastapi", "starlette", "uvicorn"}),
        ("cli.app", {"api", "worker", "fastapi", "arq", "anthropic", "redis"}),
        ("simulator.app", {"api", "worker", "shared", "cli", "redis", "anthropic"}),
    ],
)
def test_a_process_loads_only_its_own_packages(entry: str, strangers: set[str]) -> None:
    """Indirect imports count too: an API that loaded the LLM's SDK would take 1.5 s and 37 MB more."""
    code = f"import sys, {entry}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not strangers & set(loaded.split())


def test_every_ruff_file_bans_what_the_rules_here_ban() -> None:
    """Ruff shows a forbidden import in the editor, so its lists must equal those here."""
    for folder, allowed in _MAY_IMPORT.items():
        banned = (ROOT / folder / "ruff.toml").read_text(encoding="utf-8")
        for stranger in _OURS - allowed - {"scripts"}:
            assert f'"{stranger}".msg' in banned, f"{folder}/ruff.toml lets {stranger} in"


async def test_every_key_in_redis_is_a_known_one_and_lives_as_long_as_its_text_says(runtime: Runtime) -> None:
    """A key without a TTL has a reason in redis_keys.py, and an ended job leaves no key without a TTL."""
    done = await submit(runtime, idempotency_key="a-key")
    claim = await claim_one(runtime)
    await runtime.log.append(claim.id, claim.epoch, claim.next_seq, an_answer("Hello."), published=True)
    await runtime.queue.finish(claim, SUCCESS, seq=claim.next_seq + len(an_answer("Hello.")))
    await submit(runtime, tenant="tenant-b", idempotency_key="another")
    await submit(runtime, not_before_ms=4_000_000_000_000)
    await runtime.workers.announce("worker-1", {"name": "worker-1"})
    await runtime.queue.reap()

    names = [name.decode() for name in (await runtime._commands.call("SCAN", 0, "COUNT", 10_000))[1]]
    assert redis_keys.job(done.id) in names
    for name in names:
        kind = kind_of(name)
        arguments = name.removeprefix(redis_keys.prefix_of(kind)).split(":")[1:]
        wanted, meaning = (redis_keys.KEYS | redis_keys.GLOBAL_KEYS)[kind]
        assert bool(arguments) == bool(wanted), name
        if await runtime._commands.call("PTTL", name) < 0:
            assert re.search(r"No TTL|no TTL|Gone when empty", meaning), f"{kind} has no TTL and no reason"
            assert done.id not in name, f"{kind} of an ended job lives for ever"


def test_every_step_has_its_own_name_in_one_table() -> None:
    """Scripts get states by step; a step without a row would allow every state."""
    from shared.job import TRANSITIONS

    assert set(TRANSITIONS) == set(Step)


# --- what no committed file may hold ---------------------------------------------------------------------------------


def _committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: nobody can say which files are committed")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# In two pieces, so that this file does not contain what it searches for.
_INDEXES: Final = ("py" + "pi.org", "pythonhosted" + ".org", "registry." + "npm", "index" + "-url", "find" + "-links")
_HOMES: Final = ("/" + "home/", "/" + "root/", "/" + "Users/")


def test_no_file_names_a_package_index_or_a_place_on_somebodys_machine() -> None:
    """A clone must work on any machine with any index."""
    never = (*_INDEXES, *_HOMES, f"{ROOT}/")
    for path in _committed():
        text = path.read_text(encoding="utf-8", errors="replace")
        found = [word for word in never if word in text]
        assert not found, f"{path.relative_to(ROOT)} holds {found}"


def test_no_file_holds_a_key() -> None:
    """Nothing that looks like an LLM's key was committed."""
    key = re.compile("sk-" + r"(ant|proj)-[A-Za-z0-9_-]{60,}")  # tests may have made-up keys, which are shorter
    for path in _committed():
        assert not key.search(path.read_text(encoding="utf-8", errors="replace")), path.relative_to(ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_a_lock_file_holds_exact_versions_with_hashes_and_nothing_else(path: Path) -> None:
    """No package can be replaced in transit, and each machine uses its own index."""
    requirements = re.sub(r"\\\n", "", path.read_text(encoding="utf-8")).splitlines()
    lines = [line for line in requirements if line.strip() and not line.lstrip().startswith("#")]
    assert lines
    for line in lines:
        if path.name == "node.txt":
            assert re.fullmatch(r"(@[a-z0-9-]+/)?[a-z0-9-]+ \d+\.\d+\.\d+ sha512-[A-Za-z0-9+/]{86}==", line), line[:80]
            continue
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z0-9,]+\])?==\S+", line), line[:80]
        assert "--hash=sha256:" in line, line[:80]


def test_ci_runs_what_a_developer_runs() -> None:
    """CI runs one command of the repository."""
    entry = ROOT / ".ci" / "run"
    assert entry.stat().st_mode & 0o111
    assert re.search(r"^exec make test$", entry.read_text(encoding="utf-8"), re.MULTILINE)
    assert re.search(r"^test:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
