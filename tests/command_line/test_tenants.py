"""``tokenspool tenants``: what an operator sets for a tenant."""

import pytest

from tests.command_line.conftest import Tokenspool
from tests.support.redis_servers import RedisUnderTest


@pytest.fixture(autouse=True)
def settings_of_the_shell(real_redis: RedisUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Redis is."""
    monkeypatch.setenv("TOKENSPOOL_REDIS_URL", real_redis.url)


def test_a_limit_that_is_too_small_to_be_counted_is_not_none(tokenspool: Tokenspool) -> None:
    """It is the least that there is. Only 0 takes a limit away."""
    tokenspool("tenants", "set", "acme", "--usd-per-day", "1e-10", "--queued-jobs", "5")
    assert tokenspool("tenants", "show", "acme").out == "acme queued_jobs=5 usd_per_day=1e-09\n"
    assert tokenspool("tenants", "set", "acme", "--usd-per-day", "0").out == "acme queued_jobs=5\n"


@pytest.mark.parametrize("value", ["-1e308", "nan", "inf", "1e308"])
def test_a_budget_that_is_no_amount_is_refused(tokenspool: Tokenspool, value: str) -> None:
    """Of a tenant and of a key."""
    for command in (("tenants", "set", "acme"), ("keys", "create", "--tenant", "acme")):
        assert tokenspool(*command, f"--usd-per-day={value}").exit_code == 2
