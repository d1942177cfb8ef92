"""Keeps a set of processes running: starts them, restarts those that die, and stops them round by round.

Single-threaded and signal-driven: a Ctrl-C or a dead child wakes it at once. Used by `dev` and by `serve --processes`.
"""

import contextlib
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cli.child import Child
from cli.errors import CommandError

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.1
# A process that is still there after the first SIGTERM is draining; the second signal makes it give up its work. Sent
# together, the two could arrive as one, or in the other order.
_SECOND_SIGNAL_AFTER_S = 0.3
# A process that ran this long was not broken from the start, so its next restart is quick.
_STEADY_AFTER_S = 10.0


class Interrupted(Exception):
    """A stop signal came while something was starting."""


@dataclass(eq=False)
class Service:
    """One process to keep running. ``is_ready`` is called until it returns True; each call must take less than a second."""

    name: str
    start: Callable[[], Child]
    is_ready: Callable[[], bool] = lambda: True
    stop_timeout_s: float = 10
    stop_round: int = 1
    """Services of a higher round are stopped after those of the lower rounds have ended."""
    stops_unhurried: bool = False
    """A second Ctrl-C does not kill it: its last work is worth the wait."""
    second_signal: signal.Signals = signal.SIGTERM
    """The signal that ends it at once after a first SIGTERM."""
    is_patient: bool = False
    """It gets its second signal only when we get one, not automatically; a third Ctrl-C kills it."""
    log_path: Path | None = None
    start_timeout_s: float = 60
    restart_delay_s: float = 1
    """Delay of the first restart; doubles with each early death."""
    child: Child | None = field(default=None, init=False)
    started_at: float = field(default=0, init=False)
    """Monotonic seconds of the last start."""
    restart_at: float | None = field(default=None, init=False)
    """Monotonic seconds of its next start; None while it runs."""
    quick_deaths: int = field(default=0, init=False)

    @property
    def pid(self) -> int:
        return self.child.pid if self.child is not None else 0


class Supervisor:
    """A context manager that handles the stop signals and kills whatever still runs at its end.

    ``say`` gets one line for the user at each event.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._services: list[Service] = []
        self.stop_requested = False
        self._is_hurried = False
        self._interrupts = 0
        """Number of Ctrl-Cs after the first stop signal."""
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: it must outlive its terminal
            self._handlers[number] = signal.signal(number, self._on_stop_signal)
        self._handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake us
        return self

    def __exit__(self, *_: object) -> None:
        for service in reversed(self._services):
            if service.child is not None:
                service.child.kill()
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._wake_reader.close()
        self._wake_writer.close()

    def start(self, services: Sequence[Service]) -> None:
        """Start them all, then wait until each is ready.

        Raises CommandError if one ends or does not become ready, Interrupted if a stop signal comes first.
        """
        for service in services:
            self._services.append(service)
            self._spawn(service)
        for service in services:
            self._wait_until_ready(service)

    def watch(self) -> None:
        """Restart what dies, until a stop signal comes."""
        while not self.stop_requested:
            now = time.monotonic()
            for service in self._services:
                self._look_after(service, now)
            self._sleep(_POLL_S)

    def stop_everything(self) -> None:
        """Stop all services round by round, so that none loses a service it still needs."""
        for stop_round in sorted({service.stop_round for service in self._services}):
            self.stop([service for service in self._services if service.stop_round == stop_round])

    def stop(self, services: Sequence[Service]) -> None:
        """Send SIGTERM to all, the second signal soon after, and SIGKILL at the deadline or at a second Ctrl-C."""
        self._services = [service for service in self._services if service not in services]
        children = {service: service.child for service in services if service.child is not None}
        started_at = time.monotonic()
        for child in children.values():
            _send(child, signal.SIGTERM)
        hurried: set[Service] = set()
        while running := {service: child for service, child in children.items() if child.exit_code is None}:
            waited_s = time.monotonic() - started_at
            for service, child in running.items():
                is_hurried = self._is_hurried or not service.is_patient
                if is_hurried and waited_s > _SECOND_SIGNAL_AFTER_S and service not in hurried:
                    hurried.add(service)
                    _send(child, service.second_signal)
                if self._has_no_more_patience(service) or waited_s > service.stop_timeout_s:
                    self._say(f"{service.name} (pid {child.pid}) does not stop; killing it")
                    child.kill()
            self._sleep(_POLL_S)
        for child in children.values():
            child.reap()

    def _has_no_more_patience(self, service: Service) -> bool:
        return not service.stops_unhurried and self._interrupts > service.is_patient

    def _spawn(self, service: Service) -> None:
        service.child = service.start()
        service.started_at = time.monotonic()
        service.restart_at = None

    def _wait_until_ready(self, service: Service) -> None:
        deadline = service.started_at + service.start_timeout_s
        while not self.stop_requested:
            if service.child is not None and service.child.exit_code is not None:
                raise CommandError(f"{_ended(service)} before it was ready{_last_words(service)}")
            if service.is_ready():
                return
            if time.monotonic() > deadline:
                raise CommandError(
                    f"{service.name} was not ready within {service.start_timeout_s:.0f} s{_last_words(service)}"
                )
            self._sleep(_POLL_S / 2)
        raise Interrupted

    def _look_after(self, service: Service, now: float) -> None:
        if service.restart_at is not None:
            if now >= service.restart_at:
                self._spawn(service)
                self._say(f"{service.name} was restarted (pid {service.pid})")
        elif service.child is not None and service.child.exit_code is not None:
            service.quick_deaths = service.quick_deaths + 1 if now - service.started_at < _STEADY_AFTER_S else 0
            delay_s = min(30.0, service.restart_delay_s * 2**service.quick_deaths)
            service.restart_at = now + delay_s
            words = _last_words(service) if service.quick_deaths else ""
            when = f" in {delay_s:.0f} s" if delay_s >= 1 else ""
            self._say(f"{_ended(service)}; restarting it{when}{words}")
            service.child.reap()

    def _on_stop_signal(self, number: int, _frame: object) -> None:
        # Only Ctrl-C means that a user is in a hurry: a closing terminal may send SIGHUP twice.
        if self.stop_requested:
            self._interrupts += number == signal.SIGINT
            self._is_hurried = self._is_hurried or number != signal.SIGHUP
        self.stop_requested = True

    def _sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until a signal arrives."""
        readable, _, _ = select.select([self._wake_reader], [], [], seconds)
        if readable:
            with contextlib.suppress(BlockingIOError):
                self._wake_reader.recv(4096)


def _send(child: Child, number: signal.Signals) -> None:
    child.signal(number)
    child.signal(signal.SIGCONT)  # a process stopped by hand must be able to end


def _ended(service: Service) -> str:
    exit_code = service.child.exit_code if service.child is not None else None
    if exit_code is not None and exit_code < 0:
        return f"{service.name} (pid {service.pid}) was killed by {signal.Signals(-exit_code).name}"
    return f"{service.name} (pid {service.pid}) ended with exit code {exit_code}"


def _last_words(service: Service) -> str:
    if service.log_path is None:
        return ""
    with contextlib.suppress(OSError):
        written = service.log_path.read_text(errors="replace").strip().splitlines()
        if written:
            return f"; its log {service.log_path} ends with: {written[-1][:500]}"
    return f"; its log is {service.log_path}"
