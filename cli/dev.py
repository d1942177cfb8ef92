"""`tokenspool dev`: Redis, an LLM, the API and workers on one machine, each a process of its own, supervised by this one.

A process that dies is started again; Ctrl-C stops everything in an order that loses nothing, Redis last. The jobs are in
the data directory, so the next start finds them.
"""

import contextlib
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cli.child import OWN_PYTHON, Child, own_environment, start_child
from cli.embedded_redis import DirectoryInUseError, EmbeddedRedis, EmbeddedRedisError, free_port
from cli.errors import CommandError
from cli.local_model import MODEL, SLOTS, find_weights, openmp_environment
from cli.probe import http_status, worker_lives
from cli.serve import bind, read_settings
from cli.supervisor import Interrupted, Service, Supervisor
from cli.terminal import printable, put
from shared.routes import ProviderName
from shared.settings import Auth, Settings, unknown_variables

_HOST = "127.0.0.1"
_SIMULATED_MODEL = "simulated"
# The API gets none of these credentials, and our own upstreams get none of the user's.
_UPSTREAM_VARIABLES = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "OPENAI_API_KEY",
    "OPENAI_ADMIN_KEY",
    "OPENAI_BASE_URL",
)

Environment = dict[str, str]


@dataclass(frozen=True)
class Upstream:
    """The LLM in use: its name on the screen, its process if it is ours, and what the other processes need to reach it."""

    label: str
    worker_environment: Mapping[str, str]
    hint: str = ""
    """An alternative, for the line below."""
    services: Sequence[Service] = ()
    api_environment: Mapping[str, str] = field(default_factory=dict)


def run_dev(*, port: int, workers: int, data_dir: Path, simulator: bool) -> None:
    """Run until Ctrl-C or SIGTERM. Raises CommandError if something cannot start, and leaves nothing running."""
    read_settings()
    for name, nearest in unknown_variables().items():
        say(f"{name} is not a setting and has no effect" + (f": did you mean {nearest}?" if nearest else ""))
    with contextlib.closing(bind(_HOST, port, hint=" (make run ARGS='--port 8001')")) as listener:
        _make_directory(data_dir)
        redis = EmbeddedRedis(data_dir / "redis", unix_socket=True)
        with contextlib.closing(redis), Supervisor(say) as supervisor:
            try:
                with contextlib.suppress(Interrupted):
                    _run(supervisor, redis, listener, workers=workers, simulator=simulator, data_dir=data_dir)
            finally:
                if supervisor.stop_requested:
                    say("stopping; the jobs are kept")
                supervisor.stop_everything()


def _run(
    supervisor: Supervisor,
    redis: EmbeddedRedis,
    listener: socket.socket,
    *,
    workers: int,
    simulator: bool,
    data_dir: Path,
) -> None:
    """Start everything, each after what it needs, show the screen and keep it running."""
    say("starting Redis")
    redis_service = _redis_service(redis)
    supervisor.start([redis_service])
    logs = _make_logs_directory(data_dir)
    upstream = _start_upstream(supervisor, logs, simulator=simulator, workers=workers)
    say("starting the API and " + ("1 worker" if workers == 1 else f"{workers} workers"))
    url = f"http://{_HOST}:{listener.getsockname()[1]}"
    common = {
        **_environment_without(*_UPSTREAM_VARIABLES),
        "TOKENSPOOL_AUTH": os.environ.get("TOKENSPOOL_AUTH") or Auth.OFF,  # only this machine reaches it
        "TOKENSPOOL_REDIS_URL": redis.url,
        "TOKENSPOOL_DEV_CONTROLS": "on",  # the page has a button that kills the worker
        "PYTHONUNBUFFERED": "1",
    }
    settings = read_settings(redis_url=redis.url)
    api = _api_service(listener, {**common, **upstream.api_environment}, logs)
    worker_services = [
        _worker_service(number, settings, {**common, **upstream.worker_environment}, logs)
        for number in range(1, workers + 1)
    ]
    supervisor.start([api, *worker_services])
    has_keys = common["TOKENSPOOL_AUTH"] == Auth.KEYS
    _show(_screen(url, redis, redis_service, upstream, api, worker_services, data_dir, logs, has_keys=has_keys))
    supervisor.watch()


# --- the processes -------------------------------------------------------------------------------------------------


def _redis_service(redis: EmbeddedRedis) -> Service:
    def start() -> Child:
        try:
            redis.start()
        except DirectoryInUseError:
            raise CommandError(
                f"{redis.directory.parent} is in use by another `tokenspool dev`: stop it, or choose another "
                "directory with --data-dir (make run ARGS='--data-dir .another')."
            ) from None
        except EmbeddedRedisError as error:
            raise CommandError(str(error)) from None
        return redis.child

    return Service("Redis", start, log_path=redis.log_path, stop_round=4, stops_unhurried=True, stop_timeout_s=60)


def _start_upstream(supervisor: Supervisor, logs: Path, *, simulator: bool, workers: int) -> Upstream:
    """The provider of TOKENSPOOL_PROVIDER, or the Anthropic API if there is a key, else the local model, else the simulator;
    started and ready.
    """
    if not simulator and os.environ.get("TOKENSPOOL_PROVIDER") == ProviderName.OPENAI:
        return _openai()
    if not simulator and os.environ.get("ANTHROPIC_API_KEY"):
        return _anthropic()
    if not simulator:
        if find_weights() is None:
            say("the local model is not installed (`make run` tries to install it); the simulator answers instead")
        else:
            say(f"starting {MODEL}")
            upstream = _local_model(logs, workers)
            try:
                supervisor.start(upstream.services)
            except CommandError as error:
                say(str(error))
                supervisor.stop(upstream.services)
                say("the simulator answers instead")
            else:
                return upstream
    say("starting the simulator")
    upstream = _simulator(logs, asked_for=simulator)
    supervisor.start(upstream.services)
    return upstream


def _anthropic() -> Upstream:
    base_url = os.environ.get("ANTHROPIC_BASE_URL")
    return Upstream(
        label="the Anthropic API" + (f" at {base_url}" if base_url else "") + ", because ANTHROPIC_API_KEY is set",
        worker_environment=_users_upstream_variables(),
    )


def _openai() -> Upstream:
    base_url = os.environ.get("OPENAI_BASE_URL")
    return Upstream(
        label=f"chat completions {f'at {base_url}' if base_url else 'of OpenAI'}, because TOKENSPOOL_PROVIDER is openai",
        hint="" if os.environ.get("TOKENSPOOL_MODEL") else "(set TOKENSPOOL_MODEL to one of its models)",
        worker_environment=_users_upstream_variables(),
    )


def _users_upstream_variables(of: str = "") -> Environment:
    return {name: os.environ[name] for name in _UPSTREAM_VARIABLES if name in os.environ and name.startswith(of)}


def _local_model(logs: Path, workers: int) -> Upstream:
    port = free_port()
    key = secrets.token_urlsafe(24)
    environment = {
        **_environment_without(*_UPSTREAM_VARIABLES),
        **openmp_environment(logs.parent / "lib"),
        "ANTHROPIC_API_KEY": key,
        "PYTHONUNBUFFERED": "1",
    }
    service = _service(
        MODEL,
        ["cli.local_model", str(port)],
        environment,
        logs / "model.log",
        is_ready=lambda: http_status(_HOST, port, "/health") == 200,
        stop_round=3,
    )
    model = os.environ.get("TOKENSPOOL_MODEL") or MODEL
    # As many jobs at once as it has slots: others should wait in our queue, where their position can be seen.
    concurrency = os.environ.get("TOKENSPOOL_CONCURRENCY") or str(max(1, SLOTS // max(1, workers)))
    return Upstream(
        label=f"{MODEL}, a real but very small model on this machine",
        hint="(with ANTHROPIC_API_KEY set: Claude)",
        services=[service],
        api_environment={"TOKENSPOOL_MODEL": model},
        worker_environment={
            **_users_upstream_variables("OPENAI_"),  # TOKENSPOOL_ROUTES may have a route to it
            "TOKENSPOOL_MODEL": model,
            "TOKENSPOOL_CONCURRENCY": concurrency,
            "ANTHROPIC_API_KEY": key,
            "ANTHROPIC_BASE_URL": f"http://{_HOST}:{port}",
        },
    )


def _simulator(logs: Path, *, asked_for: bool) -> Upstream:
    port = free_port()
    service = _service(
        "the simulator",
        ["cli", "simulator", "--port", str(port)],
        _environment_without(*_UPSTREAM_VARIABLES),
        logs / "simulator.log",
        is_ready=lambda: http_status(_HOST, port, "/") is not None,
        stop_round=3,
    )
    model = os.environ.get("TOKENSPOOL_MODEL") or _SIMULATED_MODEL
    return Upstream(
        label="the simulator: scripted text, no model",
        hint="" if asked_for else "(with ANTHROPIC_API_KEY set: Claude)",
        services=[service],
        # API and worker must name routes alike, whatever provider the user has set.
        api_environment={"TOKENSPOOL_MODEL": model, "TOKENSPOOL_PROVIDER": ProviderName.ANTHROPIC},
        worker_environment={
            **_users_upstream_variables("OPENAI_"),
            "TOKENSPOOL_MODEL": model,
            "TOKENSPOOL_PROVIDER": ProviderName.ANTHROPIC,
            "ANTHROPIC_API_KEY": "simulated",
            "ANTHROPIC_BASE_URL": f"http://{_HOST}:{port}",
        },
    )


def _api_service(listener: socket.socket, environment: Environment, logs: Path) -> Service:
    port = listener.getsockname()[1]
    # We hold the listening socket: while the API restarts, new connections wait instead of being refused.
    return _service(
        "the API",
        ["cli", "serve", "--socket-fd", str(listener.fileno())],
        environment,
        logs / "api.log",
        is_ready=lambda: http_status(_HOST, port, "/health/ready") == 200,
        stop_round=2,
        second_signal=signal.SIGINT,
        pass_fd=listener.fileno(),
    )


def _worker_service(number: int, settings: Settings, environment: Environment, logs: Path) -> Service:
    service = _service(
        f"worker {number}",
        ["cli", "worker"],
        environment,
        logs / f"worker-{number}.log",
        is_ready=lambda: worker_lives(settings, service.pid),
        stop_round=1,
        restart_delay_s=1,  # long enough to see its jobs wait, or move to another worker
    )
    return service


def _service(
    name: str,
    arguments: list[str],
    environment: Environment,
    log_path: Path,
    *,
    is_ready: Callable[[], bool],
    stop_round: int,
    second_signal: signal.Signals = signal.SIGTERM,
    restart_delay_s: float = 0.1,
    pass_fd: int | None = None,
) -> Service:
    def start() -> Child:
        with log_path.open("ab") as log:
            return start_child(
                name,
                [*OWN_PYTHON, *arguments],
                output=log,
                environment=own_environment(environment),
                pass_fds=[] if pass_fd is None else [pass_fd],
            )

    return Service(
        name,
        start,
        is_ready=is_ready,
        log_path=log_path,
        stop_round=stop_round,
        second_signal=second_signal,
        restart_delay_s=restart_delay_s,
    )


def _environment_without(*names: str) -> Environment:
    return {name: value for name, value in os.environ.items() if name not in names}


# --- what the user sees --------------------------------------------------------------------------------------------


def say(line: str) -> None:
    """One line with the time of day, since it may come hours after the last one."""
    _show(f"{time.strftime('%H:%M:%S')} {printable(line)}\n")


def _show(text: str) -> None:
    # If the terminal is closed, everything must still be stopped in order.
    with contextlib.suppress(CommandError):
        put(text)


def _screen(
    url: str,
    redis: EmbeddedRedis,
    redis_service: Service,
    upstream: Upstream,
    api: Service,
    workers: list[Service],
    data_dir: Path,
    logs: Path,
    *,
    has_keys: bool,
) -> str:
    rows: list[tuple[str, str, Sequence[Service]]] = [
        ("API", url, [api]),
        ("workers" if len(workers) != 1 else "worker", str(len(workers)), workers),
        ("Redis", redis.version, [redis_service]),
        ("LLM", upstream.label, upstream.services),
        ("", upstream.hint, []),
        ("jobs", f"{data_dir}/ (kept when this stops)", []),
        ("logs", f"{_shown(logs)}/", []),
    ]
    table = "\n".join(f"  {name:<9}{what}{_pids(services)}" for name, what, services in rows if what)
    program = (
        sys.argv[0] if Path(sys.argv[0]).name == "tokenspool" else "tokenspool"
    )  # `make run` does not put it on PATH
    make_key = f"KEY=$(TOKENSPOOL_REDIS_URL={shlex.quote(redis.url)} {program} keys create --tenant default)\n  "
    first, header = (make_key, ' -H "Authorization: Bearer $KEY"') if has_keys else ("", "")
    return f"""
tokenspool is running. Ctrl-C stops it.

{table}

Try, in another terminal:

  {first}curl -N {url}/v1/jobs{header} -H 'Accept: text/event-stream' --json '{{"prompt": "Why is the sky blue?"}}'
  curl -s {url}/v1/jobs{header} -H 'Prefer: wait=30' --json '{{"prompt": "Write a haiku about queues."}}'
  curl -s '{url}/v1/jobs?limit=3'{header}

"""


def _pids(services: Sequence[Service]) -> str:
    return f"  (pid {', '.join(str(service.pid) for service in services)})" if services else ""


def _shown(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _make_directory(data_dir: Path) -> None:
    """Create the data directory, which only this user can read: it holds prompts."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise CommandError(f"Cannot use {data_dir} as the data directory: {error.strerror}.") from None


def _make_logs_directory(data_dir: Path) -> Path:
    """Create the logs directory and move the last run's logs aside; only after Redis has locked the data directory."""
    logs = data_dir / "logs"
    logs.mkdir(exist_ok=True)
    for log in logs.glob("*.log"):
        log.replace(log.with_suffix(".log.1"))
    return logs
