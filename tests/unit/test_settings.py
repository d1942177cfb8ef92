"""Settings: read once; each invalid one is reported in one sentence."""

from decimal import Decimal

import pytest

from shared.errors import SettingsError
from shared.settings import Auth, Settings, load_settings, unknown_variables, variable_of


def test_the_defaults_need_no_environment() -> None:
    """They work on a laptop."""
    settings = load_settings()
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.auth is Auth.KEYS
    assert settings.anthropic_api_key is None
    assert settings.lease_s == 8


def test_the_environment_sets_and_an_override_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by its variable's name; the command line overrides it."""
    monkeypatch.setenv("TOKENSPOOL_MAX_QUEUED", "7")
    monkeypatch.setenv("TOKENSPOOL_AUTH", "off")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    settings = load_settings(max_queued=8)
    assert (settings.max_queued, settings.auth, settings.anthropic_base_url) == (8, Auth.OFF, "http://127.0.0.1:9")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass on an unset variable as an empty one."""
    monkeypatch.setenv("TOKENSPOOL_MAX_QUEUED", "")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "")
    settings = load_settings()
    assert (settings.max_queued, settings.anthropic_api_key) == (1_000_000, None)


def test_other_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those with our prefix and the upstreams' own names are read."""
    monkeypatch.setenv("MODEL", "another")
    monkeypatch.setenv("TOKENSPOOL_URL", "http://client-side")
    assert load_settings().model == Settings().model


def test_settings_cannot_change_while_a_process_runs() -> None:
    """They are read once, at the start."""
    with pytest.raises(ValueError, match="frozen"):
        setattr(load_settings(), "max_queued", 5)  # noqa: B010 - mypy knows it too


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TOKENSPOOL_MAX_QUEUED", "many", "must be a whole number, but is 'many'."),
        ("TOKENSPOOL_MAX_QUEUED", "1.5", "must be a whole number, but is '1.5'."),
        ("TOKENSPOOL_MAX_QUEUED", "0", "must be at least 1, but is '0'."),
        ("TOKENSPOOL_CONCURRENCY", "501", "must be at most 500, but is '501'."),
        ("TOKENSPOOL_LEASE_S", "long", "must be a number, but is 'long'."),
        ("TOKENSPOOL_LEASE_S", "0.1", "must be at least 0.5, but is '0.1'."),
        ("TOKENSPOOL_LEASE_S", "nan", "must be at most 600.0, but is 'nan'."),
        ("TOKENSPOOL_REDIS_TIMEOUT_S", "0", "must be greater than 0.0, but is '0'."),
        ("TOKENSPOOL_REDIS_TIMEOUT_S", "inf", "must be at most 604800.0, but is 'inf'."),
        ("TOKENSPOOL_DRAIN_S", "soon", "must be a number, but is 'soon'."),
        ("TOKENSPOOL_DRAIN_S", "-1", "must be at least 0.0, but is '-1'."),
        ("TOKENSPOOL_AUTH", "maybe", "must be 'keys' or 'off', but is 'maybe'."),
        ("TOKENSPOOL_LOG_LEVEL", "loud", "must be 'DEBUG', 'INFO', 'WARNING' or 'ERROR', but is 'LOUD'."),
        ("TOKENSPOOL_REDIS_URL", "redis://cache/abc", "must be a URL that ends with the number of a database (/0)"),
        ("TOKENSPOOL_REDIS_URL", "rediss://cache:6379/0/1", "but is 'rediss://cache:6379/0/1'."),
        (
            "TOKENSPOOL_REDIS_URL",
            "redis://[half",
            "must be a URL like redis://127.0.0.1:6379/0, but is 'redis://[half'.",
        ),
        ("TOKENSPOOL_REDIS_URL", "redis://cache/-1", "but is 'redis://cache/-1'."),
        ("TOKENSPOOL_REDIS_URL", "redis://:unmistakable@cache/abc", "but is something else."),
        (
            "ANTHROPIC_API_KEY",
            "sk-unmistakable\nsk-other",
            "must be one line of printable ASCII, but is something else.",
        ),
        ("OPENAI_API_KEY", "sk-\x1funmistakable", "must be one line of printable ASCII, but is something else."),
        ("OPENAI_API_KEY", "\ufeffsk-unmistakable", "must be one line of printable ASCII, but is something else."),
        ("TOKENSPOOL_PROVIDER", "gemini", "must be 'anthropic' or 'openai', but is 'gemini'."),
        ("TOKENSPOOL_REDIS_URL", "localhost:6379", "but is 'localhost:6379'."),
        ("TOKENSPOOL_MODEL", "m" * 300, "must be a text of at most 256 characters, but is 'mmm"),
        ("ANTHROPIC_BASE_URL", "api.example.com", "but is 'api.example.com'."),
        ("TOKENSPOOL_USAGE_RETENTION_S", "3600", "must be at least 86400.0, but is '3600'."),
        ("TOKENSPOOL_PRICES", "3", "must be a JSON object, but is '3'."),
        ("TOKENSPOOL_PRICES", "{'m': 3}", "must be valid JSON."),
    ],
)
def test_an_invalid_value_is_reported_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str
) -> None:
    """It has the variable, the expected form and the value."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    sentence = str(caught.value)
    assert sentence.startswith(f"{variable} must be ")
    assert expected in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 220
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("price", "sentence"),
    [
        ('{"input": 3}', "[output] must be set."),
        ('{"input": "x", "output": 1}', "[input] must be a number, but is 'x'."),
        ('{"input": true, "output": 1}', "[input] must be a number, but is 'True'."),
        ('{"input": NaN, "output": 1}', "[input] must be a finite number, but is 'nan'."),
        ('{"input": -1, "output": 1}', "[input] must be at least 0, but is '-1'."),
        ('{"input": 1e9, "output": 1}', "[input] must be at most 1000000, but is '1000000000.0'."),
        ('{"input": 1e-7, "output": 1}', "[input] must be a number of at most 6 decimals, but is '1e-07'."),
        ('{"input": 1, "output": 1, "cached": 2}', "[cached] must be left out (there is no such member), but is '2'."),
    ],
)
def test_an_invalid_price_is_reported_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, price: str, sentence: str
) -> None:
    """With the path of the invalid member."""
    monkeypatch.setenv("TOKENSPOOL_PRICES", f'{{"a-*": {price}}}')
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == f"TOKENSPOOL_PRICES[a-*]{sentence}"


def test_prices_are_read_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as the nearest float."""
    monkeypatch.setenv("TOKENSPOOL_PRICES", '{"m": {"input": 0.1, "output": 15, "cache_read": "0.000001"}}')
    price = load_settings().prices["m"]
    assert (price.input, price.output, price.cache_read) == (Decimal("0.1"), Decimal(15), Decimal("0.000001"))
    assert price.cache_write is None


def test_an_invalid_override_is_named_by_its_variable() -> None:
    """The command line sets the same settings."""
    for overrides in ({"lease_s": "long"}, {"max_queued": 1.5}, {"max_queued": None}, {"redis_url": 5}):
        (name,) = overrides
        with pytest.raises(SettingsError, match=f"^{variable_of(name)} must be a [a-z ]+, but is .+[.]$"):
            load_settings(**overrides)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TOKENSPOOL_REDIS_URL", "redis//:unmistakable@cache:6379"),
        ("TOKENSPOOL_REDIS_URL", "http://user:unmistakable@cache:6379/0"),
        ("TOKENSPOOL_REDIS_URL", "cache:6379?password=unmistakable"),
        ("TOKENSPOOL_REDIS_URL", f"redis//:unmistakable{'x' * 100}@cache:6379"),
        ("ANTHROPIC_BASE_URL", "ftp://user:unmistakable@gateway"),
    ],
)
def test_a_secret_in_a_wrong_url_is_not_echoed(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """The sentence goes into a log."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "unmistakable" not in str(caught.value)
    assert str(caught.value).startswith(f"{variable} must be ")


def test_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by printing the settings, nor in the error about an invalid key."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-unmistakable")
    settings = load_settings()
    assert settings.anthropic_api_key is not None
    assert settings.anthropic_api_key.get_secret_value() == "sk-unmistakable"
    assert "unmistakable" not in f"{settings!r} {settings} {settings.model_dump()}"
    with pytest.raises(SettingsError) as caught:
        load_settings(anthropic_api_key=["sk-unmistakable"])
    assert "unmistakable" not in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\t\n"])
def test_a_line_end_is_stripped_from_a_value(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Kubernetes secrets and files from Windows have one; in a header it would break the request."""
    for variable, value in (
        ("ANTHROPIC_API_KEY", "sk-a"),
        ("OPENAI_API_KEY", "sk-o"),
        ("ANTHROPIC_BASE_URL", "http://127.0.0.1:9"),
        ("TOKENSPOOL_REDIS_URL", "redis://cache/3"),
        ("TOKENSPOOL_MODEL", "a-model"),
        ("TOKENSPOOL_LOG_LEVEL", "debug"),
    ):
        monkeypatch.setenv(variable, f"{value}{end}")
    settings = load_settings()
    assert settings.anthropic_api_key is not None
    assert settings.openai_api_key is not None
    assert (settings.anthropic_api_key.get_secret_value(), settings.openai_api_key.get_secret_value()) == (
        "sk-a",
        "sk-o",
    )
    assert (settings.anthropic_base_url, settings.redis_url) == ("http://127.0.0.1:9", "redis://cache/3")
    assert (settings.model, settings.log_level) == ("a-model", "DEBUG")


def test_a_key_of_only_a_line_end_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret is empty; a worker then reports that it must be set."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "\n")
    assert load_settings().anthropic_api_key is None


@pytest.mark.parametrize("level", ["debug", "Debug", "DEBUG"])
def test_the_log_level_may_be_written_in_any_case(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setenv("TOKENSPOOL_LOG_LEVEL", level)
    assert load_settings().log_level == "DEBUG"


@pytest.mark.parametrize(
    "url", ["redis://cache", "redis://cache/", "redis://cache:1/15", "unix:///run/redis/a.sock?db=2"]
)
def test_a_redis_url_may_leave_the_database_out(url: str) -> None:
    assert load_settings(redis_url=url).redis_url == url


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("TOKENSPOOL_CONCURENCY", "TOKENSPOOL_CONCURRENCY"),
        ("TOKENSPOOL_LEASE", "TOKENSPOOL_LEASE_S"),
        ("tokenspool_redis_ulr", "TOKENSPOOL_REDIS_URL"),
        ("TOKENSPOOL_MAX_QUEUE", "TOKENSPOOL_MAX_QUEUED"),
        ("TOKENSPOOL_WEATHER_IN_PARIS", None),
    ],
)
def test_a_misspelt_variable_is_found_with_the_name_that_is_nearest(
    monkeypatch: pytest.MonkeyPatch, variable: str, nearest: str | None
) -> None:
    monkeypatch.setenv(variable, "1")
    assert unknown_variables() == {variable.upper(): nearest}


@pytest.mark.parametrize(
    "variable",
    [
        "TOKENSPOOL_LEASE_S",
        "tokenspool_lease_s",
        "TOKENSPOOL_URL",
        "TOKENSPOOL_API_KEY",
        "TOKENSPOOL_API_SERVICE_HOST",
        "TOKENSPOOL_SERVICE_PORT_HTTP",
        "TOKENSPOOL_API_PORT",
        "TOKENSPOOL_PORT_8000_TCP_ADDR",
        "TOKENSPOOLER",
        "OTHER_TOKENSPOOL_LEASE",
    ],
)
def test_valid_and_foreign_variables_are_not_misspellings(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Kubernetes sets some of them for a service with our name."""
    monkeypatch.setenv(variable, "1")
    assert unknown_variables() == {}


def test_a_redis_password_is_not_shown_by_printing_the_settings() -> None:
    """A traceback with the settings may go into a log."""
    settings = load_settings(redis_url="redis://:unmistakable@cache:6379/0")
    assert settings.redis_url == "redis://:unmistakable@cache:6379/0"
    assert "unmistakable" not in repr(settings)


def test_every_setting_has_one_variable() -> None:
    """The documentation lists exactly the variables that are read."""
    variables = [variable_of(name) for name in Settings.model_fields]
    assert len(set(variables)) == len(variables)
    assert all(name.startswith(("TOKENSPOOL_", "ANTHROPIC_", "OPENAI_")) for name in variables)
