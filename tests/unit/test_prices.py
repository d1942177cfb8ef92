"""Prices: exact, dated, and never guessed."""

import re
from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.job import Usage
from shared.prices import TABLE, LongPrompts, OwnPrice, Price, Prices, Rates, cost_nano_usd
from shared.settings import Settings

TODAY = date(2026, 11, 23)
A_MILLION = 1_000_000
NANO_PER_USD = 1_000_000_000

_RATES = Rates(
    input=3_000_000, output=15_000_000, cache_write=3_750_000, cache_write_long=6_000_000, cache_read=300_000
)


def _row(*models: str, since: date = date(2026, 1, 1), rates: Rates = _RATES, long: LongPrompts | None = None) -> Price:
    return Price(models, since, rates, "https://vendor.example/prices", long)


def _cost(model: str, usage: Usage, *, prices: Prices | None = None, day: date = TODAY, long: int = 0) -> int | None:
    return cost_nano_usd(model, usage, prices or Prices(), day, long_cache_write_tokens=long)


_A_MILLION_IN = Usage(input_tokens=A_MILLION)


def test_each_kind_of_token_has_its_price() -> None:
    """A million tokens of each kind cost the price on the vendor's page."""
    costs = [
        _cost("claude-sonnet-4-6", Usage(input_tokens=A_MILLION)),
        _cost("claude-sonnet-4-6", Usage(output_tokens=A_MILLION)),
        _cost("claude-sonnet-4-6", Usage(cache_creation_input_tokens=A_MILLION)),
        _cost("claude-sonnet-4-6", Usage(cache_creation_input_tokens=A_MILLION), long=A_MILLION),
        _cost("claude-sonnet-4-6", Usage(cache_read_input_tokens=A_MILLION)),
        _cost("claude-sonnet-4-6", Usage()),
    ]
    assert costs == [int(Decimal(usd) * NANO_PER_USD) for usd in ("3", "15", "3.75", "6", "0.3", "0")]


def test_a_million_calls_cost_a_million_times_one() -> None:
    """With floats the sum would drift."""
    usage = Usage(input_tokens=11, output_tokens=7, cache_creation_input_tokens=3, cache_read_input_tokens=13)
    one = _cost("claude-sonnet-4-6", usage)
    assert one == 11 * 3000 + 7 * 15000 + 3 * 3750 + 13 * 300
    total = 0
    for _ in range(A_MILLION):
        total += one
    whole = Usage(**{name: getattr(usage, name) * A_MILLION for name in usage.__struct_fields__})
    assert total == _cost("claude-sonnet-4-6", whole)


@given(st.lists(st.integers(0, 10_000_000), min_size=4, max_size=4), st.decimals(0, 1000, places=6))
def test_a_cost_is_the_decimal_product_to_the_nearest_billionth(counts: list[int], usd: Decimal) -> None:
    """However many decimals the price has."""
    prices = Prices({"m": OwnPrice(input=usd, output=usd * 2, cache_write=usd / 2 * 2, cache_read=0)})
    usage = Usage(*counts)
    exact = (counts[0] * usd + counts[1] * usd * 2 + counts[2] * usd) * 1000
    cost = _cost("m", usage, prices=prices)
    assert cost is not None
    assert abs(cost - exact) <= Decimal("0.5")


def test_a_model_without_a_row_has_no_price() -> None:
    """None is not zero: such calls are counted separately."""
    for model in ("a-model", "", "claude-sonnet", "claude-sonnet-4-66", "gpt-5.6-sol", "my/claude-sonnet-4-6"):
        assert _cost(model, _A_MILLION_IN) is None


def test_a_kind_of_token_without_a_price_makes_the_call_unpriced() -> None:
    """The price is not guessed; calls without such tokens are not affected."""
    assert _cost("gpt-5-mini", Usage(input_tokens=1)) == 250
    assert _cost("gpt-5-mini", Usage(input_tokens=1, cache_creation_input_tokens=1)) is None


def test_a_row_applies_from_its_day_on() -> None:
    """By the UTC day of the call."""
    usage = Usage(cache_read_input_tokens=A_MILLION)
    days = [date(2026, 9, 27), date(2026, 9, 28), date(2026, 10, 6), date(2026, 10, 7), TODAY]
    costs = [_cost("claude-sonnet-5-5", usage, day=day) for day in days]
    assert costs == [None, 200_000_000, 200_000_000, 100_000_000, 100_000_000]


def test_the_order_of_dated_rows_does_not_matter() -> None:
    """The newest row that applies already is used."""
    rows = [
        _row("m", since=date(2026, 1, month), rates=_RATES._replace(input=month * A_MILLION)) for month in (3, 1, 2)
    ]
    days = [date(2026, 1, day) for day in (1, 2, 3, 4)]
    assert [_cost("m", _A_MILLION_IN, prices=Prices(table=rows), day=day) for day in days] == [
        n * NANO_PER_USD for n in (1, 2, 3, 3)
    ]


def test_an_exact_name_wins_and_then_the_first_pattern() -> None:
    """Wherever the exact name is."""
    rows = [_row(name, rates=_RATES._replace(input=n)) for n, name in enumerate(("a-*", "*", "a-b"), start=1)]
    prices = Prices(table=rows)
    assert [prices.price_of(name, TODAY).rates.input for name in ("a-b", "a-c", "x")] == [3, 1, 2]  # type: ignore[union-attr]


def test_a_long_prompt_has_other_rates_for_the_whole_call() -> None:
    """Tokens in the cache count towards the prompt's length; the answer does not."""
    few = Usage(input_tokens=50_000, cache_creation_input_tokens=20_000, cache_read_input_tokens=30_000)
    many = Usage(input_tokens=50_001, cache_creation_input_tokens=20_000, cache_read_input_tokens=30_000)
    assert _cost("claude-haiku-5-5", few) == 50_000 * 100 + 20_000 * 125 + 30_000 * 10
    assert _cost("claude-haiku-5-5", many) == 50_001 * 500 + 20_000 * 625 + 30_000 * 50
    assert _cost("claude-haiku-5-5", Usage(output_tokens=A_MILLION)) == NANO_PER_USD // 2


def test_an_own_price_overrides_the_table() -> None:
    """For all days and prompts; even an own pattern overrides an exact name in the table."""
    own = {
        "claude-*": OwnPrice(input=Decimal(1), output=Decimal(2)),
        "claude-haiku-5-5": OwnPrice(
            input=Decimal(5), output=Decimal(6), cache_write=Decimal(7), cache_read=Decimal(8)
        ),
    }
    prices = Prices(own)
    all_kinds = Usage(A_MILLION, A_MILLION, A_MILLION, A_MILLION)
    assert _cost("claude-sonnet-4-6", all_kinds, prices=prices, day=date(2020, 1, 1)) == 5 * NANO_PER_USD
    assert _cost("claude-haiku-5-5", all_kinds, prices=prices) == 26 * NANO_PER_USD
    assert _cost("gpt-5", _A_MILLION_IN, prices=prices) == _cost("gpt-5", _A_MILLION_IN)


def test_an_own_price_can_be_zero() -> None:
    """For a model on the operator's own machine."""
    prices = Prices({"llama*": OwnPrice(input=Decimal(0), output=Decimal(0))})
    assert _cost("llama-9", Usage(1, 2, 3, 4), prices=prices) == 0


# The table itself


def test_every_row_says_where_it_comes_from() -> None:
    """A URL of the vendor, and a day in the past."""
    for price in TABLE:
        assert re.match(r"https://(platform\.claude\.com|developers\.openai\.com)/", price.source), price.models
        assert price.since < date.today() + timedelta(days=1)  # noqa: DTZ011 - the time zone does not matter


def test_no_model_is_in_two_rows_of_one_day() -> None:
    """It would be undefined which one applies."""
    seen = [(name, price.since) for price in TABLE for name in price.models]
    assert len(seen) == len(set(seen))


def test_prices_are_of_a_plausible_size() -> None:
    """Finds a misplaced decimal point."""
    for price in TABLE:
        for rates in (price.rates, *([price.long_prompts.rates] if price.long_prompts else [])):
            assert 0 < rates.input < rates.output <= 100 * A_MILLION
            assert rates.cache_read is not None
            assert rates.cache_read < rates.input
            assert rates.cache_write is None or rates.input < rates.cache_write < 2 * rates.input
            assert rates.cache_write_long is None or rates.cache_write_long <= 3 * rates.input


@pytest.mark.parametrize("model", ["gpt-5-2025-08-07", "claude-haiku-4-5-20251001", "gpt-4o-2024-08-06"])
def test_a_snapshot_costs_what_its_model_costs(model: str) -> None:
    """If the vendor says so."""
    assert _cost(model, _A_MILLION_IN) == _cost(re.sub(r"-20\d\d-?\d\d-?\d\d$", "", model), _A_MILLION_IN) is not None


def test_the_default_model_has_a_price() -> None:
    """A new user's first job shows its cost."""
    assert _cost(Settings().model, _A_MILLION_IN) == 3 * NANO_PER_USD
