"""`serve`, `worker` and `simulator` as processes: what they print at their start, and how they end."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO

import psutil
import pytest

from cli.probe import http_status
from tests.support.wait import wait_until

_SOON = "restarting it in 2 s"
_REDIS_AWAY = "redis://127.0.0.1:1/0"


@contextmanager
def _started(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command as a process until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"TOKENSPOOL_AUTH": "off", "TOKENSPOOL_REDIS_URL": _REDIS_AWAY, "PYTHONUNBUFFERED": "1", **environment},
        start_new_session=True,
    )
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        assert process.returncode is not None


def _logged(pipe: IO[bytes] | None, event: str) -> dict[str, object]:
    """Reads up to the next log line with that event; the pipe must not end before it."""
    assert pipe is not None
    for line in pipe:
        found: dict[str, object] = json.loads(line)
        if found["event"] == event:
            return found
    raise AssertionError(f"no {event}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_api_says_where_it_listens_and_ends_with_exit_code_0(number: signal.Signals) -> None:
    """Also without Redis: it starts, and responds with 503 to requests that need Redis."""
    with _started("serve", "--port", "0", TOKENSPOOL_SHUTDOWN_NOTICE_S="0") as api:
        port = int(str(_logged(api.stderr, "api_starting")["port"]))
        await wait_until(lambda: http_status("127.0.0.1", port, "/health/live") == 200, "the API")
        assert http_status("127.0.0.1", port, "/health/ready") == 503
        api.send_signal(number)
        out, err = api.communicate(timeout=20)
    assert (api.returncode, out) == (0, b"")
    assert b"Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_it_starts_is_not_lost(number: signal.Signals) -> None:
    """Before the server has installed its own handlers."""
    with _started("serve", "--port", "0") as api:
        _logged(api.stderr, "api_starting")
        api.send_signal(number)
        _, err = api.communicate(timeout=20)
    assert api.returncode == 0
    assert b"Traceback" not in err


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("worker",)])
def test_a_misspelt_setting_causes_a_warning(command: tuple[str, ...]) -> None:
    """It has no effect, which nobody would notice."""
    wrong = {"TOKENSPOOL_CONCURENCY": "7", "ANTHROPIC_API_KEY": "made-up", "TOKENSPOOL_LOG_LEVEL": "debug"}
    with _started(*command, **wrong) as process:
        line = _logged(process.stderr, "unknown_variable")
    assert (line["variable"], line["nearest"]) == ("TOKENSPOOL_CONCURENCY", "TOKENSPOOL_CONCURRENCY")


@pytest.mark.slow
async def test_api_processes_share_a_port_and_are_restarted() -> None:
    """`serve --processes 2`: one is killed, the other serves, a new one starts, SIGTERM ends all."""
    with _started("serve", "--processes", "2", "--port", "0") as parent:
        port = int(str(_logged(parent.stderr, "api_starting")["port"]))
        await wait_until(lambda: http_status("127.0.0.1", port, "/health/live") == 200, "the API")
        first, second = psutil.Process(parent.pid).children()
        first.kill()
        assert http_status("127.0.0.1", port, "/health/live") == 200
        assert parent.stderr is not None
        ended, again = list(islice((line for line in parent.stderr if line.startswith(b"tokenspool: ")), 2))
        assert ended == f"tokenspool: API process 1 (pid {first.pid}) was killed by SIGKILL; {_SOON}\n".encode()
        assert re.fullmatch(rb"tokenspool: API process 1 was restarted \(pid \d+\)\n", again)
        assert http_status("127.0.0.1", port, "/health/live") == 200
        parent.send_signal(signal.SIGTERM)
        parent.communicate(timeout=20)
    assert parent.returncode == 0
    assert not second.is_running()


@pytest.mark.slow
def test_an_idle_worker_ends_at_once_with_exit_code_0(real_redis_url: str) -> None:
    """It has no jobs to drain."""
    with _started("worker", ANTHROPIC_API_KEY="made-up", TOKENSPOOL_REDIS_URL=real_redis_url) as worker:
        _logged(worker.stderr, "worker_started")
        worker.send_signal(signal.SIGTERM)
        out, err = worker.communicate(timeout=20)
    assert (worker.returncode, out) == (0, b"")
    assert b"Traceback" not in err
    assert json.loads(err.splitlines()[-1])["event"] == "worker_stopped"


def test_the_simulator_says_where_it_listens() -> None:
    """`tokenspool simulator` is the same program."""
    with _started("simulator", "--port", "0") as simulator:
        assert simulator.stdout is not None
        line = simulator.stdout.readline().decode()
        announced = re.fullmatch(r"simulator listening on http://127\.0\.0\.1:(\d+)\n", line)
        assert announced is not None
        assert http_status("127.0.0.1", int(announced[1]), "/") is not None
        simulator.send_signal(signal.SIGTERM)
        _, err = simulator.communicate(timeout=20)
    assert (simulator.returncode, err) == (0, b"")


def test_a_health_check_says_whether_its_process_is_up() -> None:
    """As containers use it: exit code 1 and a sentence if the process is not up."""
    with _started("probe", "api", "--port", "1") as probe:
        out, err = probe.communicate(timeout=20)
    assert (probe.returncode, out, err) == (1, b"", b"tokenspool: No API responds on port 1.\n")
    with _started("probe", "worker") as probe:
        out, err = probe.communicate(timeout=20)
    assert (probe.returncode, out) == (1, b"")
    assert err == b"tokenspool: No worker of this host is registered in Redis.\n"
