"""Supervised processes are kept running, and end when and as the supervisor says."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cli.child import Child, start_child
from cli.errors import CommandError
from cli.supervisor import Interrupted, Service, Supervisor

_WAITS = "import signal; print('up', flush=True); signal.pause()"
_IGNORES = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
)
_WANTS_TWO = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print('up', flush=True)
for _ in range(2):
    signal.sigwait({signal.SIGTERM})
raise SystemExit(7)
"""


class News:
    """The supervisor's output; ``then`` may react to a line, as a person would."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.then: Callable[[str], None] = lambda _line: None

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self.then(line)

    def stop_when(self, ending: str, times: int = 1) -> None:
        """Acts like Ctrl-C after a line with this ending has come so many times."""

        def stop(line: str) -> None:
            if ending in line and sum(ending in line for line in self.lines) == times:
                os.kill(os.getpid(), signal.SIGINT)

        self.then = stop


@pytest.fixture
def news() -> News:
    return News()


@pytest.fixture
def supervisor(news: News) -> Iterator[Supervisor]:
    with Supervisor(news) as supervisor:
        yield supervisor


def a_service(
    tmp_path: Path,
    program: str = _WAITS,
    *,
    name: str = "the service",
    stop_round: int = 1,
    stop_timeout_s: float = 10,
    start_timeout_s: float = 20,
    restart_delay_s: float = 0.01,
    stops_unhurried: bool = False,
    is_patient: bool = False,
    is_ready: Callable[[], bool] | None = None,
) -> Service:
    """A Python program as a service; by default it is ready after it has printed something."""
    log = tmp_path / f"{name}.log"

    def start() -> Child:
        with log.open("wb") as output:
            return start_child(name, [sys.executable, "-I", "-S", "-c", program], output=output)

    return Service(
        name,
        start,
        is_ready=is_ready or (lambda: log.stat().st_size > 0),
        stop_round=stop_round,
        stops_unhurried=stops_unhurried,
        is_patient=is_patient,
        stop_timeout_s=stop_timeout_s,
        start_timeout_s=start_timeout_s,
        restart_delay_s=restart_delay_s,
        log_path=log,
    )


def test_a_dead_service_is_restarted_and_reported_once(tmp_path: Path, supervisor: Supervisor, news: News) -> None:
    """With its name, its pid and the cause; then the pid of the new process."""
    service, other = a_service(tmp_path), a_service(tmp_path, name="another")
    supervisor.start([service, other])
    first, untouched = service.pid, other.pid
    os.kill(first, signal.SIGKILL)
    news.stop_when("was restarted")
    supervisor.watch()
    second = service.pid
    assert second != first
    assert psutil.pid_exists(second)
    assert other.pid == untouched
    ended, again = news.lines
    log = service.log_path
    assert ended == f"the service (pid {first}) was killed by SIGKILL; restarting it; its log {log} ends with: up"
    assert again == f"the service was restarted (pid {second})"
    supervisor.stop_everything()
    assert not psutil.pid_exists(second)
    assert len(news.lines) == 2


def test_the_pause_before_a_restart_grows_with_each_death(tmp_path: Path, supervisor: Supervisor, news: News) -> None:
    """Its exit code and last output are printed, which show why."""
    service = a_service(tmp_path, "print('no luck', flush=True); raise SystemExit(3)", is_ready=lambda: True)
    supervisor.start([service])
    news.stop_when("was restarted", times=3)
    supervisor.watch()
    assert [line for line in news.lines if "no luck" in line] == news.lines[::2]
    assert all("ended with exit code 3" in line for line in news.lines[::2])
    assert service.quick_deaths == 3
    supervisor.stop_everything()


def test_a_service_that_ends_before_it_was_up_is_a_sentence_with_its_last_output(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    """It is not restarted, since it never worked."""
    service = a_service(tmp_path, "raise SystemExit('cannot')", is_ready=lambda: False)
    with pytest.raises(CommandError) as refused:
        supervisor.start([service])
    assert str(refused.value) == (
        f"the service (pid {service.pid}) ended with exit code 1 before it was ready; its log {service.log_path} ends "
        "with: cannot"
    )


def test_a_service_that_takes_too_long_to_start_is_a_sentence(tmp_path: Path, supervisor: Supervisor) -> None:
    """Its process ends with the supervisor."""
    service = a_service(tmp_path, is_ready=lambda: False, start_timeout_s=0.01)
    with pytest.raises(CommandError, match=r"the service was not ready within 0 s"):
        supervisor.start([service])


def test_a_stop_while_something_starts_is_obeyed_at_once(tmp_path: Path, supervisor: Supervisor) -> None:
    """Also SIGHUP, when the terminal is closed."""

    def never() -> bool:
        os.kill(os.getpid(), signal.SIGHUP)
        return False

    with pytest.raises(Interrupted):
        supervisor.start([a_service(tmp_path, is_ready=never)])
    assert supervisor.stop_requested
    supervisor.stop_everything()


def test_nohup_is_respected(tmp_path: Path, news: News) -> None:
    """A user who starts us with nohup wants us to outlive the terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Supervisor(news) as supervisor:
            supervisor.start([a_service(tmp_path)])
            os.kill(os.getpid(), signal.SIGHUP)
            assert not supervisor.stop_requested
            supervisor.stop_everything()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_rounds_are_stopped_one_after_the_other(tmp_path: Path, supervisor: Supervisor) -> None:
    """So that no service loses another one that it still needs: here each checks at its end that the next is there."""
    witness = tmp_path / "witness"
    program = f"""
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
print('up', flush=True)
signal.sigwait({{signal.SIGTERM}})
os.write(os.open({str(witness)!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), sys.argv[1].encode())
"""
    services = []
    for number in (3, 1, 2):
        service = a_service(
            tmp_path, program.replace("sys.argv[1]", repr(str(number))), name=str(number), stop_round=number
        )
        services.append(service)
    supervisor.start(services)
    supervisor.stop_everything()
    assert witness.read_text() == "123"


def test_a_draining_service_gets_a_second_sigterm(tmp_path: Path, supervisor: Supervisor, news: News) -> None:
    """A worker hands its jobs back at the second SIGTERM."""
    service = a_service(tmp_path, _WANTS_TWO)
    supervisor.start([service])
    supervisor.stop_everything()
    assert service.child is not None
    assert service.child.exit_code == 7
    assert news.lines == []


_TOLD = """
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print('up', flush=True)
signal.sigwait({signal.SIGTERM})
raise SystemExit(8 if signal.sigtimedwait({signal.SIGTERM}, 1) else 9)
"""


@pytest.mark.parametrize(("times", "exit_code"), [(1, 9), (2, 8)])
def test_a_patient_service_gets_its_second_signal_with_the_supervisors_second(
    tmp_path: Path, supervisor: Supervisor, news: News, times: int, exit_code: int
) -> None:
    """Its work is worth waiting for, unless the user is in a hurry."""
    service = a_service(tmp_path, _TOLD, is_patient=True)
    supervisor.start([service])
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGTERM)
    supervisor.stop_everything()
    assert service.child is not None
    assert (service.child.exit_code, news.lines) == (exit_code, [])


def test_a_service_that_does_not_end_is_killed_at_its_deadline(
    tmp_path: Path, supervisor: Supervisor, news: News
) -> None:
    """And the supervisor says so."""
    service = a_service(tmp_path, _IGNORES, stop_timeout_s=0.1)
    supervisor.start([service])
    supervisor.stop_everything()
    assert news.lines == [f"the service (pid {service.pid}) does not stop; killing it"]


def test_a_second_ctrl_c_kills_all_but_redis(tmp_path: Path, supervisor: Supervisor, news: News) -> None:
    """Redis still has to write its file."""
    hurried = a_service(tmp_path, _IGNORES, name="hurried")
    unhurried = a_service(tmp_path, _WANTS_TWO, name="unhurried", stops_unhurried=True)
    supervisor.start([hurried, unhurried])
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
    supervisor.stop_everything()
    assert news.lines == [f"hurried (pid {hurried.pid}) does not stop; killing it"]
    assert unhurried.child is not None
    assert unhurried.child.exit_code == 7


def test_a_service_that_was_stopped_by_hand_is_woken_to_end(tmp_path: Path, supervisor: Supervisor, news: News) -> None:
    """SIGSTOP, then Ctrl-C."""
    service = a_service(tmp_path)
    supervisor.start([service])
    os.kill(service.pid, signal.SIGSTOP)
    supervisor.stop_everything()
    assert news.lines == []


def test_a_bug_of_ours_leaves_no_process_and_restores_the_signals(tmp_path: Path, news: News) -> None:
    """Whatever exception ends the block."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
    service = a_service(tmp_path, _IGNORES)

    def broken() -> None:
        with Supervisor(news) as supervisor:
            supervisor.start([service])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert not psutil.pid_exists(service.pid)
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_command_that_cannot_be_executed_is_an_error_at_once(tmp_path: Path) -> None:
    """Not a process that ends unnoticed."""
    plain = tmp_path / "plain"
    plain.write_text("no program")
    with pytest.raises(OSError, match="plain"):
        start_child("plain", [plain])


_PARENT = """
import signal, sys
from cli.child import start_child
with open(sys.argv[1], "wb") as output:
    child = start_child("child", [sys.executable, "-I", "-S", "-c", sys.argv[2]], output=output)
print(child.pid, flush=True)
signal.pause()
"""


def test_a_child_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    """Although the parent could not end it."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, tmp_path / "log", _IGNORES], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(10)
    assert not child.is_running()
