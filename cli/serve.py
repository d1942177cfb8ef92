"""The processes of a deployment, each in the foreground: API, worker, simulator.

They read their settings from the environment here and pass them down. A wrong setting ends the process with exit code 2
and one sentence.
"""

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from cli.errors import CommandError
from shared.loopback import is_loopback

if TYPE_CHECKING:
    import asyncio

    from shared.settings import Settings

_BACKLOG = 2048
_PARTING_S = 5
"""How long clients have after the grace to read the end of their responses."""


def run_api(*, host: str, port: int, insecure: bool, processes: int, socket_fd: int | None) -> None:
    """Serve the API until SIGTERM or Ctrl-C. ``socket_fd`` is a listening socket that a supervisor holds for us."""
    settings = read_settings()
    refuse_open_network_without_keys(settings, host, insecure=insecure)
    listener = socket.socket(fileno=socket_fd) if socket_fd is not None else bind(host, port)
    if processes == 1:
        _serve(settings, listener, is_supervised=socket_fd is not None)
    else:
        _serve_by_processes(settings, listener, host=host, insecure=insecure, processes=processes)


def run_one_worker(*, concurrency: int | None, drain_s: float | None) -> None:
    """Work until SIGTERM, then drain. Options that are not given come from the environment."""
    given = {"concurrency": concurrency, "drain_s": drain_s}
    settings = read_settings(**{name: value for name, value in given.items() if value is not None})
    allow_many_connections()
    from shared.errors import SettingsError
    from worker.app import run_worker

    try:
        run_worker(settings)
    except SettingsError as error:
        raise CommandError(str(error), exit_code=2) from None


def run_simulator(*, host: str, port: int) -> None:
    """Play the Anthropic API until SIGTERM or Ctrl-C."""
    allow_many_connections()
    bind(host, port).close()  # a taken port is one sentence, not uvicorn's traceback
    from simulator.app import serve

    with suppress(KeyboardInterrupt):
        serve(host, port)


def read_settings(**overrides: Any) -> "Settings":
    """The settings of this process. Raises CommandError with the sentence that names the wrong one."""
    from shared.errors import SettingsError
    from shared.settings import load_settings
    from shared.store.connect import FOREIGN_ERRORS, connection_maker

    try:
        settings = load_settings(**overrides)
    except SettingsError as error:
        raise CommandError(str(error), exit_code=2) from None
    try:
        connection_maker(settings.redis_url, name="tokenspool")()  # not opened: checks the URL and its options
    except (ValueError, TypeError, *FOREIGN_ERRORS):
        # Not shown: it may hold a password.
        message = "TOKENSPOOL_REDIS_URL must be a URL like redis://127.0.0.1:6379/0, but is something else."
        raise CommandError(message, exit_code=2) from None
    return settings


def refuse_open_network_without_keys(settings: "Settings", host: str, *, insecure: bool) -> None:
    """Raise CommandError if callers without a key could reach the API from other machines, unless ``insecure``."""
    if settings.auth == "off" and not is_loopback(host) and not insecure:
        raise CommandError(
            f"TOKENSPOOL_AUTH=off lets anyone who reaches {host} act as any tenant: listen on 127.0.0.1, or add --insecure "
            "if the network is closed.",
            2,
        )


def bind(host: str, port: int, *, hint: str = "") -> socket.socket:
    """A socket bound to the address, not yet listening. Raises CommandError if it is in use or not an address of this machine.

    ``hint`` is appended to "choose another with --port".
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # a name with an empty label is not even looked up
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise CommandError(f"Cannot listen on {host}: {reason}.", 2) from None
    # A server that ended a moment ago leaves connections in TIME_WAIT; they are no reason to refuse.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise CommandError(
            f"Cannot listen on port {port} of {host} ({error.strerror}): choose another with --port{hint}."
        ) from None
    return listener


def allow_many_connections() -> None:
    """Raise the soft limit of open files to the hard one: each follower and each upstream call is a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve(settings: "Settings", listener: socket.socket, *, is_supervised: bool) -> None:
    import uvicorn

    from api.app import create_app
    from api.edge.connections import Connections, bounds_of, open_files
    from api.edge.server import Server
    from shared.gc_tuning import tune_gc
    from shared.settings import warn_of_unknown_variables
    from shared.telemetry import configure_logging, get_logger

    configure_logging(settings.log_level)
    warn_of_unknown_variables(get_logger("api"))
    allow_many_connections()
    connections = Connections(bounds_of(settings.max_connections, settings.keep_alive_s, open_files()))
    config = uvicorn.Config(
        create_app(settings),
        loop="uvloop",
        http=cast("type[asyncio.Protocol]", connections.protocol),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # api/edge/proxies.py trusts the proxies of the settings; uvicorn trusts this machine
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_PARTING_S,  # counted from the end of the drain
    )
    hurried_by = {signal.SIGINT} if is_supervised else {signal.SIGTERM, signal.SIGINT}
    server = Server(config, hurried_by=frozenset(hurried_by))
    # uvicorn sets the same handlers itself, but later, and restores these when it has finished: an earlier signal must not be
    # lost, and a later one must not spoil a clean exit.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    host, port = listener.getsockname()[:2]
    tune_gc()
    get_logger("api").info("api_starting", host=host, port=port)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(1)


def _serve_by_processes(
    settings: "Settings", listener: socket.socket, *, host: str, insecure: bool, processes: int
) -> None:
    from cli.child import OWN_PYTHON, Child, own_environment, start_child
    from cli.supervisor import Interrupted, Service, Supervisor

    command = [*OWN_PYTHON, "cli", "serve", "--host", host, "--socket-fd", str(listener.fileno())]
    if insecure:
        command.append("--insecure")

    def starter(name: str) -> Callable[[], Child]:
        return lambda: start_child(
            name,
            command,
            output=sys.stderr.buffer,
            environment=own_environment(os.environ),
            pass_fds=[listener.fileno()],
        )

    names = [f"API process {number}" for number in range(1, processes + 1)]
    stop_timeout_s = settings.shutdown_grace_s + 2 * _PARTING_S
    services = [
        Service(name, starter(name), stop_timeout_s=stop_timeout_s, is_patient=True, second_signal=signal.SIGINT)
        for name in names
    ]
    with Supervisor(lambda line: print(f"tokenspool: {line}", file=sys.stderr)) as supervisor:
        try:
            with suppress(Interrupted):
                supervisor.start(services)
                supervisor.watch()
        finally:
            listener.close()  # else clients that connect after the last process has closed its own would wait in vain
            supervisor.stop_everything()
