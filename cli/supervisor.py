"""Keeps a set of processes running: starts them, brings back what dies, stops them in the order it is told.

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
from types import TracebackType
from typing import Any, Self

from cli.child import Child
from cli.errors import CommandError

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.1
# What ignores the first SIGTERM is draining; the second signal tells it to give up what it has. Sent at once, the two could
# arrive as one, or in the other order.
_SECOND_SIGNAL_AFTER_S = 0.3
# What runs this long was not broken from the start, so its next restart is quick again.
_STEADY_AFTER_S = 10.0


class Interrupted(Exception):
    """We were told to stop while something was starting."""


@dataclass(eq=False)
class Service:
    """One process to keep running. ``is_ready`` is asked until it is true; it must answer within a second."""

    name: str
    start: Callable[[], Child]
    is_ready: Callable[[], bool] = lambda: True
    stop_timeout_s: float = 10
    stop_round: int = 1
    """Those of a higher round are stopped when those of the lower ones have ended."""
    stops_unhurried: bool = False
    """A second Ctrl-C does not kill it: what it still does is worth the wait."""
    second_signal: signal.Signals = signal.SIGTERM
    """What tells it, after a first SIGTERM, to end at once."""
    is_patient: bool = False
    """It gets its second signal when we get one, and not by itself after a moment; a third, of Ctrl-C, kills it."""
    log_path: Path | None = None
    start_timeout_s: float = 60
    restart_delay_s: float = 1
    """Before the first restart; doubles with each death that follows soon."""
    child: Child | None = field(default=None, init=False)
    started_at: float = field(default=0, init=False)
    """Monotonic seconds of the last start."""
    restart_at: float | None = field(default=None, init=False)
    """Monotonic seconds at which it is started again; None while it runs."""
    quick_deaths: int = field(default=0, init=False)

    @property
    def pid(self) -> int:
        return self.child.pid if self.child is not None else 0


class Supervisor:
    """Used as a ``with`` block, which handles the stop signals and kills whatever still runs at its end.

    ``say`` gets one line for a person at each event.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._services: list[Service] = []
        self._stop_requested = False
        self._is_told_twice = False
        self._interrupts = 0
        """Ctrl-Cs since we were told to stop."""
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: it shall outlive its terminal
            self._handlers[number] = signal.signal(number, self._on_stop_signal)
        self._handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake us
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for service in reversed(self._services):
            if service.child is not None:
                service.child.kill()
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._wake_reader.close()
        self._wake_writer.close()

    @property
    def stop_requested(self) -> bool:
        return self._stop_requested

    def start(self, services: Sequence[Service]) -> None:
        """Start them all, then wait until each is ready.

        Raises CommandError when one ends or stays silent instead, Interrupted when we are told to stop meanwhile.
        """
        for service in services:
            self._services.append(service)
            self._spawn(service)
        for service in services:
            self._wait_until_ready(service)

    def watch(self) -> None:
        """Bring back what dies, until we are told to stop."""
        while not self.stop_requested:
            now = time.monotonic()
            for service in self._services:
                self._look_after(service, now)
            self._sleep(_POLL_S)

    def stop_everything(self) -> None:
        """Stop all services, round by round, so that none loses what it still needs."""
        for stop_round in sorted({service.stop_round for service in self._services}):
            self.stop([service for service in self._services if service.stop_round == stop_round])

    def stop(self, services: Sequence[Service]) -> None:
        """SIGTERM them all, the second signal after a moment, and SIGKILL what is left at its deadline or at a second Ctrl-C."""
        self._services = [service for service in self._services if service not in services]
        children = {service: service.child for service in services if service.child is not None}
        started_at = time.monotonic()
        for child in children.values():
            _tell(child, signal.SIGTERM)
        told_twice: set[Service] = set()
        while running := {service: child for service, child in children.items() if child.exit_code is None}:
            waited_s = time.monotonic() - started_at
            for service, child in running.items():
                is_hurried = self._is_told_twice or not service.is_patient
                if is_hurried and waited_s > _SECOND_SIGNAL_AFTER_S and service not in told_twice:
                    told_twice.add(service)
                    _tell(child, service.second_signal)
                if self._has_no_more_patience(service) or waited_s > service.stop_timeout_s:
                    self._say(f"{service.name} (pid {child.pid}) does not end; killing it")
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
                raise CommandError(f"{_ended(service)} before it was up{_last_words(service)}")
            if service.is_ready():
                return
            if time.monotonic() > deadline:
                raise CommandError(
                    f"{service.name} was not up within {service.start_timeout_s:.0f} s{_last_words(service)}"
                )
            self._sleep(_POLL_S / 2)
        raise Interrupted

    def _look_after(self, service: Service, now: float) -> None:
        if service.restart_at is not None:
            if now >= service.restart_at:
                self._spawn(service)
                self._say(f"{service.name} is started again (pid {service.pid})")
        elif service.child is not None and service.child.exit_code is not None:
            service.quick_deaths = service.quick_deaths + 1 if now - service.started_at < _STEADY_AFTER_S else 0
            delay_s = min(30.0, service.restart_delay_s * 2**service.quick_deaths)
            service.restart_at = now + delay_s
            words = _last_words(service) if service.quick_deaths else ""
            self._say(f"{_ended(service)}; starting it again{_in(delay_s)}{words}")
            service.child.reap()

    def _on_stop_signal(self, number: int, _frame: object) -> None:
        # Only a Ctrl-C is a person in a hurry: a terminal that closes may well send SIGHUP twice.
        if self._stop_requested:
            self._interrupts += number == signal.SIGINT
            self._is_told_twice = self._is_told_twice or number != signal.SIGHUP
        self._stop_requested = True

    def _sleep(self, seconds: float) -> None:
        """Until a signal arrives, and for ``seconds`` at most."""
        readable, _, _ = select.select([self._wake_reader], [], [], seconds)
        if readable:
            with contextlib.suppress(BlockingIOError):
                self._wake_reader.recv(4096)


def _tell(child: Child, number: signal.Signals) -> None:
    child.signal(number)
    child.signal(signal.SIGCONT)  # one that was stopped by hand must be able to end


def _ended(service: Service) -> str:
    exit_code = service.child.exit_code if service.child is not None else None
    if exit_code is not None and exit_code < 0:
        return f"{service.name} (pid {service.pid}) was ended by {signal.Signals(-exit_code).name}"
    return f"{service.name} (pid {service.pid}) ended with exit code {exit_code}"


def _in(delay_s: float) -> str:
    return f" in {delay_s:.0f} s" if delay_s >= 1 else ""


def _last_words(service: Service) -> str:
    if service.log_path is None:
        return ""
    with contextlib.suppress(OSError):
        written = service.log_path.read_text(errors="replace").strip().splitlines()
        if written:
            return f"; its log {service.log_path} ends with: {written[-1][:500]}"
    return f"; its log is {service.log_path}"
