"""A refused command prints one sentence on standard error, exits with the right code, and leaves nothing running."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cli.embedded_redis import EmbeddedRedis
from tests.command_line.conftest import Tokenspool


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("TOKENSPOOL_MAX_QUEUED", "many", "TOKENSPOOL_MAX_QUEUED must be a whole number, but is 'many'."),
        ("TOKENSPOOL_LEASE_S", "0", "TOKENSPOOL_LEASE_S must be at least 0.5, but is '0'."),
        ("TOKENSPOOL_AUTH", "maybe", "TOKENSPOOL_AUTH must be 'keys' or 'off', but is 'maybe'."),
    ],
)
@pytest.mark.parametrize("command", ["dev", "serve", "worker"])
def test_a_wrong_setting_stops_every_command_that_reads_it(
    tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch, command: str, variable: str, value: str, sentence: str
) -> None:
    """The error has the variable, the expected form and the value."""
    monkeypatch.setenv(variable, value)
    outcome = tokenspool(command)
    assert (outcome.exit_code, outcome.sentence) == (2, sentence)


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:port/0",
        "redis://127.0.0.1:99999/0",
        "redis://:secret@127.0.0.1:6379/0?socket_timeout=soon",
        "redis://:secret@127.0.0.1:6379/0?colour=blue",
        "rediss://:secret@127.0.0.1:6379/0?ssl_cert_reqs=perhaps",
    ],
)
def test_an_invalid_redis_url_is_reported_but_not_printed(
    tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """It may contain a password."""
    monkeypatch.setenv("TOKENSPOOL_REDIS_URL", url)
    outcome = tokenspool("worker")
    assert outcome.exit_code == 2
    assert (
        outcome.sentence == "TOKENSPOOL_REDIS_URL must be a URL like redis://127.0.0.1:6379/0, but is something else."
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("worker", "--concurrency", "0"), "TOKENSPOOL_CONCURRENCY must be at least 1, but is '0'."),
        (("worker", "--drain-s", "nan"), "TOKENSPOOL_DRAIN_S must be at most 86400.0, but is 'nan'."),
        (
            ("keys", "create", "--tenant", "a b"),
            "A tenant's name must be 1 to 64 characters of A-Z, a-z, 0-9, _, . and -.",
        ),
        (
            ("keys", "create", "--tenant", "acme", "--scope", "all"),
            "--scope must be one of: submit, read, cancel, admin, operator.",
        ),
        (("keys", "create", "--tenant", "acme", "--env", "Live"), "--env must be 1 to 16 characters of a-z and 0-9."),
        (("keys", "revoke", "x"), "A key id must be key_ and 16 characters, as shown by `tokenspool keys list`."),
        (("probe", "weather"), "Cannot probe 'weather': name api or worker."),
    ],
)
def test_an_invalid_option_is_reported_like_an_invalid_setting(
    tokenspool: Tokenspool, arguments: tuple[str, ...], sentence: str
) -> None:
    """With exit code 2, since the command itself is wrong."""
    outcome = tokenspool(*arguments)
    assert (outcome.exit_code, outcome.sentence) == (2, sentence)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "tokenspool.example"])
def test_an_api_without_keys_stays_off_open_networks(
    tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Unless an option says that the network is closed. A name may point anywhere."""
    monkeypatch.setenv("TOKENSPOOL_AUTH", "off")
    outcome = tokenspool("serve", "--host", host)
    assert outcome.exit_code == 2
    assert outcome.sentence.startswith(f"TOKENSPOOL_AUTH=off lets anyone who reaches {host} act as any tenant")


@pytest.fixture
def taken_port() -> Iterator[str]:
    """A port on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield str(taken.getsockname()[1])


@pytest.mark.parametrize("command", ["dev", "serve", "simulator"])
def test_a_port_in_use_is_reported(
    tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taken_port: str, command: str
) -> None:
    """With what to do, and before anything else is started or written."""
    monkeypatch.setenv("TOKENSPOOL_AUTH", "off")
    data_dir = tmp_path / "data"
    where: list[str | Path] = ["--data-dir", data_dir] if command == "dev" else []
    outcome = tokenspool(command, "--port", taken_port, *where)
    hint = " (make run ARGS='--port 8001')" if command == "dev" else ""
    assert outcome.exit_code == 1
    assert outcome.sentence == (
        f"Cannot listen on port {taken_port} of 127.0.0.1 (Address already in use): choose another with --port{hint}."
    )
    assert not data_dir.exists()


def test_an_impossible_data_directory_is_reported(tokenspool: Tokenspool, tmp_path: Path) -> None:
    """For example a path through a file."""
    (tmp_path / "file").touch()
    data_dir = tmp_path / "file" / "data"
    outcome = tokenspool("dev", "--port", "0", "--data-dir", data_dir)
    assert outcome.exit_code == 1
    assert outcome.sentence == f"Cannot use {data_dir} as the data directory: Not a directory."


def test_a_data_directory_in_use_is_reported(
    tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error names the directory; the logs of the process that uses it are not touched."""
    monkeypatch.setattr("cli.dev.EmbeddedRedis", partial(EmbeddedRedis, lock_timeout_s=0))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "api.log").write_text("in use")
    with EmbeddedRedis(tmp_path / "redis", unix_socket=True):
        outcome = tokenspool("dev", "--port", "0", "--data-dir", tmp_path, "--simulator")
    assert outcome.exit_code == 1
    assert outcome.err == (
        f"tokenspool: {tmp_path} is in use by another `tokenspool dev`: stop it, or choose another directory "
        "with --data-dir (make run ARGS='--data-dir .another').\n"
    )
    assert (tmp_path / "logs" / "api.log").read_text() == "in use"


def test_a_redis_that_fails_to_start_is_reported_with_its_last_output(
    tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Here a program that is not Redis."""
    program = tmp_path / "not-redis"
    program.write_text("#!/bin/sh\necho out of order\nexit 3\n")
    program.chmod(0o700)
    monkeypatch.setenv("TOKENSPOOL_REDIS_BINARY", str(program))
    outcome = tokenspool("dev", "--port", "0", "--data-dir", tmp_path / "data", "--simulator")
    assert outcome.exit_code == 1
    log = tmp_path / "data" / "redis" / "redis.log"
    assert outcome.err == f"tokenspool: The embedded Redis did not start; its log {log} ends with: out of order\n"


def test_an_unknown_command_is_reported_with_a_hint_to_help(tokenspool: Tokenspool) -> None:
    """In the words of the command line parser, on standard error."""
    outcome = tokenspool("frobnicate")
    assert (outcome.exit_code, outcome.out) == (2, "")
    assert "No such command 'frobnicate'" in outcome.err
    assert "tokenspool --help" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (("worker",), {"TOKENSPOOL_LEASE_S": "long"}, "TOKENSPOOL_LEASE_S must be a number, but is 'long'."),
        (
            ("serve", "--insecure", "--host", "two..dots"),  # Python raises another error for an empty label
            {"TOKENSPOOL_AUTH": "off"},
            "Cannot listen on two..dots: not a host name.",
        ),
    ],
)
def test_the_installed_command_refuses_as_it_does_here(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], sentence: str
) -> None:
    """The console script itself, with its own environment and without a terminal."""
    done = subprocess.run(
        [Path(sys.executable).with_name("tokenspool"), *arguments],
        env={"PATH": os.defpath, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"tokenspool: {sentence}\n")
