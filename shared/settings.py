"""Every setting: its environment variable, unit, default, and when to change it.

Read once, by the ``main`` of a process, and passed down; no other module looks at the environment. The table in the
documentation is generated from this class.
"""

import difflib
import ipaddress
import os
import re
from enum import StrEnum
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings import SettingsError as EnvSettingsError

from shared.errors import SettingsError
from shared.prices import OwnPrice
from shared.routes import ProviderName, RouteRule, Routes
from shared.telemetry import Logger
from shared.webhooks import MOST_ATTEMPTS

_PREFIX = "TOKENSPOOL_"

Seconds = Annotated[float, Field(gt=0, le=604_800)]
Retention = Annotated[float, Field(ge=86_400, le=315_360_000)]
"""In seconds, for what is kept per day: one day to ten years."""
Bytes = Annotated[int, Field(ge=1024, le=4 << 30)]


Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_ORIGIN = re.compile(r"https?://[a-z0-9.-]{1,253}(:[0-9]{1,5})?|https?://\[[0-9a-f:.]{2,45}\](:[0-9]{1,5})?", re.ASCII)


_DATABASE = re.compile(r"/?[0-9]{0,9}", re.ASCII)

_READ_ELSEWHERE: Final = frozenset(
    f"{_PREFIX}{name}" for name in ("URL", "API_KEY", "REDIS_BINARY", "PORT", "MEMORY", "SERVE_FLAGS", "WEBHOOK_SECRET")
)
"""Variables that the command line, docker-compose.yml and the examples read."""
_OF_KUBERNETES: Final = re.compile(
    r"_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT(_\d+_[A-Z]+(_[A-Z]+)?)?$", re.ASCII
)
"""Kubernetes sets these for every service, and ours may well be called tokenspool."""


class Auth(StrEnum):
    """Who may call."""

    KEYS = "keys"
    OFF = "off"


class Settings(BaseSettings):
    """The defaults work on a laptop."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        env_ignore_empty=True,
        str_strip_whitespace=True,  # a value that was read from a file may end with a line break
    )

    # Not in the repr: it may hold a password.
    redis_url: str = Field("redis://127.0.0.1:6379/0", pattern=r"^(redis|rediss|unix)://", repr=False)
    """Any Redis >= 6.2 or Valkey: ``redis://``, ``rediss://`` or ``unix://``. Change it: always, in production."""
    redis_timeout_s: Seconds = 1.5
    """How long an API call waits for Redis before it responds with 503."""
    auth: Auth = Auth.KEYS
    """``keys``, or ``off``: then the ``X-Tenant`` header names the tenant. Never ``off`` on an open network."""
    auth_cache_s: float = Field(60, ge=0, le=3_600)
    """How long a key that Redis has confirmed stays valid while Redis is away. Otherwise a revoked key is refused within 5 s."""
    model: str = Field("claude-sonnet-4-6", min_length=1, max_length=256)
    """The model of a request that names none."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Logs never hold a prompt, an answer or a key, at any level."""

    max_queued: int = Field(1_000_000, ge=1)
    """How many jobs may wait; one more is refused with 503. Lower it if Redis is small: a waiting job takes about 1.1 KB plus
    its prompt."""
    tenant_running_jobs: int = Field(0, ge=0)
    """How many jobs of one tenant may run at once, over all workers; the rest wait. 0 is no limit."""
    address_requests_per_minute: int = Field(0, ge=0, le=1_000_000)
    """How many requests one address may send in any 60 s, counted before the key is checked; an IPv6 /64 counts as one address.
    0 is no limit. Set it (20, say) where strangers can reach the API, but not behind a proxy that hides client addresses."""
    max_body_bytes: Bytes = 32 << 20
    """Larger request bodies are refused with 413."""
    max_bodies_bytes: Bytes = 512 << 20
    """How much memory the request bodies being read by one API process may take in total, without the first 64 KiB of each; one
    more is refused with 503. Lower it if the process has little memory, but not below ``TOKENSPOOL_MAX_BODY_BYTES``."""
    max_unsent_bytes: Bytes = 256 << 20
    """How much memory unread large responses (above 64 KiB) of one API process may take in total; a tenant that holds half of
    it is refused another one with 503. Lower it if the process has little memory."""
    max_batch_bytes: Bytes = 256 << 20
    """Larger batches are refused with 413."""
    max_batch_requests: int = Field(100_000, ge=1, le=1_000_000)
    """Batches with more requests are refused with 413."""
    max_batch_line_bytes: Bytes = 4 << 20
    """A longer request in a batch becomes a failed item."""
    max_connections: int = Field(0, ge=0)
    """How many connections one API process keeps open; one more gets a 503, and so does a tenant whose open requests are three
    times the free connections. 0: as many as the limit of open files allows."""
    keep_alive_s: Seconds = 75
    """After this time an idle connection is closed. Keep it longer than the idle timeout of the proxy in front, so that the proxy
    closes first."""
    dashboard: bool = True
    """Whether the API serves its page at ``/``. The page is a client of the API: it shows a caller what its key may see."""
    dev_controls: bool = False
    """Whether the page may kill workers of this machine, to show what happens then. ``tokenspool dev`` sets it; set it nowhere else."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins whose pages may call this API from a browser, separated by commas, or ``*`` (not with ``TOKENSPOOL_AUTH=off``).
    Empty: CORS is off."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Host names that are accepted under ``TOKENSPOOL_AUTH=off`` in addition to 127.0.0.1, localhost and [::1], separated by commas
    and without ports, or ``*`` for any. Other Host headers are refused: a web page could rebind its name to this machine."""
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = ()
    """Networks of the reverse proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are trusted, separated by commas.
    Empty: no proxy is trusted."""
    max_not_before_s: int = Field(2_592_000, ge=1, le=315_360_000)
    """How far ahead a ``not_before`` may be: 30 days. Until then the request is kept in Redis. Raise it to plan jobs further ahead."""
    max_prompt_chars: int = Field(16_000_000, ge=1)
    """Longer ``prompt`` members are refused with 400."""
    memory_high_water: float = Field(0.8, gt=0, le=1)
    """Share of Redis's ``maxmemory`` above which submits are refused with 503, so that running jobs can finish."""

    tenant_waiting_share: float = Field(0.25, ge=0, le=1)
    """Share of Redis's ``maxmemory`` that one tenant's requests may take while they wait, run, or are kept for a retry; one more is
    refused with 429. 0 is no limit. Raise it if there is only one tenant; ``tokenspool tenants set --waiting-bytes`` overrides it."""

    compress_above_bytes: int = Field(1_024, ge=0, le=1 << 30)
    """Requests and results above this many bytes are kept compressed in Redis. 0 compresses none; those that are compressed are
    read all the same."""
    log_retention_s: Seconds = 3_600
    """How long the events of an ended job can be replayed."""
    batch_log_retention_s: Seconds = 60
    """The same for a batch item that nobody followed when it ended."""
    result_retention_s: Seconds = 604_800
    """How long an ended job and its result can be read; after that they are a 404."""
    idempotency_retention_s: Seconds = 86_400
    """An Idempotency-Key is kept as long as its job, and at least this long after the job's end."""
    usage_retention_s: Retention = 34_560_000
    """How long a day's usage can be read, counted from its last call: 400 days."""
    ledger_retention_s: Retention = 86_400
    """How long the ledger row of a single upstream call is kept; about 0.6 KB each. The sums of ``/v1/usage`` do not need it."""
    prices: dict[str, OwnPrice] = {}
    """Prices of models that the built-in table does not have, or for which you pay another price: JSON, see below."""

    concurrency: int = Field(100, ge=1, le=500)
    """How many jobs one worker runs at once. They mostly wait for the LLM: raise it until a core is busy."""
    low_priority_share: float = Field(0.75, ge=0, le=1)
    """Share of a worker's slots that ``low`` jobs (batch items) may fill; the rest is kept for other jobs. 0: the worker runs no
    ``low`` jobs, so that callers who wait get a slot at once however busy the other workers are."""
    lease_s: float = Field(8, ge=0.5, le=600)
    """A worker that does not renew its leases for this long is considered dead, and its jobs run elsewhere. It renews them four
    times in this period."""
    drain_s: float | None = Field(None, ge=0, le=86_400)
    """How long a worker keeps running its jobs after SIGTERM before it hands them back. Unset: the longest ``timeout_s`` of its
    jobs, plus 20 s."""

    provider: ProviderName = ProviderName.ANTHROPIC
    """Which kind of upstream serves a model that ``TOKENSPOOL_ROUTES`` does not name."""
    routes: dict[str, RouteRule] = {}
    """Which upstream serves which model, its fallback models and its limits: JSON, see below."""
    anthropic_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("ANTHROPIC_API_KEY", "anthropic_api_key")
    )
    """Workers need it for the Anthropic API; the API processes do not."""
    anthropic_base_url: str = Field(
        "https://api.anthropic.com",
        pattern=r"^https?://",
        repr=False,
        validation_alias=AliasChoices("ANTHROPIC_BASE_URL", "anthropic_base_url"),
    )
    """Change it to use a gateway, or any server that speaks the Messages API."""
    anthropic_version: str = Field("2023-06-01", pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")
    """The ``anthropic-version`` of calls whose caller sent none, such as those of ``/v1/jobs``. Change it when the upstream retires
    this version; a later one may refuse members, as 2026-10-21 refuses ``temperature``, ``top_p`` and ``top_k``."""
    openai_api_key: SecretStr | None = Field(None, validation_alias=AliasChoices("OPENAI_API_KEY", "openai_api_key"))
    """Workers need it if a route leads to ``openai``."""
    openai_base_url: str = Field(
        "https://api.openai.com/v1",
        pattern=r"^https?://",
        repr=False,
        validation_alias=AliasChoices("OPENAI_BASE_URL", "openai_base_url"),
    )
    """Change it to use vLLM, llama.cpp, Ollama, a gateway, or any server that speaks chat completions."""
    connect_timeout_s: Seconds = 5
    """How long opening a connection to the upstream may take."""
    first_token_timeout_s: Seconds = 120
    """Time from the request to the first content. Each sign of life (a ping, a comment, any bytes) restarts it."""
    content_idle_timeout_s: Seconds = 60
    """Longest silence after the first content. Each sign of life restarts it."""
    pinged_idle_timeout_s: Seconds = 600
    """Time from the request to the first content, and between two pieces of content, while there are signs of life. Raise it for
    models that think, or write a tool's input, for longer."""
    upstream_retry_base_s: Seconds = 2
    """Upper bound of the first backoff; it doubles with each attempt, with full jitter."""
    upstream_retry_cap_s: Seconds = 60
    """Upper bound of every backoff."""
    retry_after_cap_s: Seconds = 3_600
    """An upstream's Retry-After is honoured up to this: no worker calls that route for that long."""

    idle_check_s: float = Field(60, ge=0, le=86_400)
    """After this long without a call, one worker reads the upstreams' model lists, which costs nothing, so that ``/health`` is
    current. 0: never; then no worker reads the lists for ``/v1/models`` either."""

    webhook_timeout_s: float = Field(15, gt=0, le=30)
    """How long one attempt to deliver a webhook may take, from the DNS look-up to the receipt."""
    webhook_retry_s: Annotated[tuple[Seconds, ...], Field(max_length=MOST_ATTEMPTS - 1)] = (
        5,
        300,
        1_800,
        7_200,
        18_000,
        36_000,
        36_000,
    )
    """The pauses between the attempts, as a JSON list; each may be up to a tenth longer. After the last attempt the delivery has failed."""
    webhook_allow_networks: Annotated[tuple[Network, ...], NoDecode] = ()
    """Networks in which webhooks may use any port and plain http, separated by commas. Empty: webhooks go only to port 443 of
    public addresses, by https."""

    sse_ping_s: Seconds = 15
    """How often a silent stream gets a comment, so that proxies do not close it."""
    sse_buffer_bytes: Bytes = 1 << 20
    """How much may wait for a slow follower; beyond that its connection is cut, and it resumes by its last event id."""
    sse_idle_probe_s: Seconds = 1.5
    """After this silence the relay reads the log, in case the last message was lost on the way."""
    shutdown_grace_s: Seconds = 30
    """How long requests that wait for a job go on after SIGTERM; followers are asked to reconnect at once. Raise it if your answers take
    longer, and set the process manager's stop timeout to 10 s more than this."""
    shutdown_notice_s: float = Field(10, ge=0, le=604_800)
    """How long an API process accepts new requests after SIGTERM, within the grace. Raise it if the load balancer needs longer
    to see that ``/health/ready`` is 503: its check interval times the failures that it requires."""

    @field_validator("redis_url")
    @classmethod
    def _database(cls, url: str) -> str:
        try:
            path = urlsplit(url).path
        except ValueError:
            raise PydanticCustomError("url", "a URL like redis://127.0.0.1:6379/0") from None
        if not url.startswith("unix:") and not _DATABASE.fullmatch(path):
            raise PydanticCustomError("database", "a URL that ends with the number of a database (/0)")
        return url

    @field_validator("log_level", mode="before")
    @classmethod
    def _level(cls, value: object) -> object:
        return value.strip().upper() if isinstance(value, str) else value

    @field_validator("anthropic_api_key", "openai_api_key", mode="before")
    @classmethod
    def _vendor_key(cls, value: object) -> object:
        """Strips the line break that a secret's file or a Windows editor adds. One inside would break the head of each call."""
        if not isinstance(value, str):
            return value
        if not (value.strip().isascii() and value.strip().isprintable()):
            raise PydanticCustomError("vendor_key", "one line of printable ASCII")
        return value.strip() or None

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: object, info: ValidationInfo) -> object:
        origins = _listed(value)
        if "*" in origins and (len(origins) > 1 or info.data.get("auth") is Auth.OFF):
            # Otherwise every web page that somebody on this machine opens could act as any tenant.
            raise PydanticCustomError("origins", "a list of origins (without *) when TOKENSPOOL_AUTH=off")
        if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
            raise PydanticCustomError("origins", "origins like https://app.example.com, separated by commas")
        return origins

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _hosts(cls, value: object) -> object:
        return _listed(value)

    @field_validator("trusted_proxies", "webhook_allow_networks", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        try:
            return tuple(ipaddress.ip_network(network) for network in _listed(value))
        except ValueError:
            raise PydanticCustomError("networks", "networks like 10.0.0.0/8, separated by commas") from None


def _listed(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else (str(value),)
    return tuple(part.strip() for part in map(str, parts) if part.strip())


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process, from the environment; ``overrides`` win.

    Raises SettingsError, whose message is one sentence naming the variable, what was expected and what it was.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None
    except EnvSettingsError as error:  # a variable's JSON is not valid; the message ends in the field's name
        name = str(error).partition('field "')[2].partition('"')[0]
        raise SettingsError(f"{variable_of(name)} must be valid JSON.") from None


def routes_of(settings: Settings) -> Routes:
    """The routes that the settings define."""
    return Routes(settings.routes, settings.provider)


def variable_of(field_name: str) -> str:
    """The environment variable that sets a field."""
    alias = Settings.model_fields[field_name].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else _PREFIX + field_name.upper()


def unknown_variables() -> dict[str, str | None]:
    """Environment variables with our prefix that name no setting, each with the setting of the nearest name, if any."""
    known = {variable_of(name) for name in Settings.model_fields} | _READ_ELSEWHERE
    ours = [name for name in map(str.upper, os.environ) if name.startswith(_PREFIX) and not _OF_KUBERNETES.search(name)]
    return {name: _nearest(name, known) for name in sorted({*ours} - known)}


def _nearest(name: str, known: set[str]) -> str | None:
    ends = [each.removeprefix(_PREFIX) for each in known if each.startswith(_PREFIX)]
    found = difflib.get_close_matches(name.removeprefix(_PREFIX), ends, n=1)
    return _PREFIX + found[0] if found else None


def warn_of_unknown_variables(logger: Logger) -> None:
    """Logs each misspelt variable: it has no effect, and nobody would notice."""
    for name, nearest in unknown_variables().items():
        logger.warning("unknown_variable", variable=name, nearest=nearest)


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    variable = variable_of(name) if name in Settings.model_fields else name
    if inside := "".join(f"[{part}]" for part in first["loc"][1:]):  # a member of a JSON value
        variable += inside
    if first["type"] == "missing":
        return f"{variable} must be set."
    expected = _EXPECTED.get(first["type"], first["msg"].removeprefix("Input should be ").partition(",")[0])
    expected = expected.format(**first.get("ctx", {}), schemes=", ".join(_schemes(first.get("ctx", {}))))
    was = str(first["input"])
    # A key, or a URL with a user or a query in it: the sentence ends up in a log.
    may_be_secret = "key" in name.lower() or ("url" in name.lower() and ("@" in was or "?" in was))
    return f"{variable} must be {expected}, but is {'something else' if may_be_secret else repr(was[:80])}."


def _schemes(context: dict[str, Any]) -> list[str]:
    """``^(redis|rediss|unix)://`` as a list of schemes."""
    pattern = str(context.get("pattern", "")).removeprefix("^").removesuffix("://").strip("()")
    return [f"{scheme}://" for scheme in pattern.replace("https?", "http|https").split("|")]


_EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_type": "a text",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "decimal_parsing": "a number",
    "decimal_type": "a number",
    "decimal_max_places": "a number of at most {decimal_places} decimals",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "extra_forbidden": "left out (there is no such member)",
    "dict_type": "a JSON object",
    "model_type": "a JSON object",
    "tuple_type": "a JSON list",
    "too_long": "a list of at most {max_length}",
    "string_pattern_mismatch": "a URL that begins with one of: {schemes}",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
}
