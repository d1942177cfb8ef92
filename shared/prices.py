"""What a call to the LLM costs: a table of prices as data, and exact arithmetic on it.

No price is guessed: each row has the day from which it is valid, and the vendor's page. A model without a row has no price,
and its calls are counted as unpriced. TOKENSPOOL_PRICES overrides the table. All are list prices of the vendor's own API
in its standard tier: no batch, fast or regional rates, no tools that are billed by the call. Pure.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from shared.job import Usage
from shared.limits import Reservation

_PICO_PER_MILLIONTH: Final = 1_000_000
"""A dollar for a million tokens is a million pico-dollars for one: with six decimals, prices are whole numbers."""
_PICO_PER_NANO: Final = 1000


class Rates(NamedTuple):
    """Pico-dollars (USD * 10^-12) per token. None: the price is unknown, and so is that of every call with such tokens."""

    input: int
    output: int
    cache_write: int | None
    """Tokens written to the cache for the vendor's default time: 5 minutes, or 30 with OpenAI."""
    cache_write_long: int | None
    """Tokens written to the cache for longer: 1 hour, or 12 with OpenAI."""
    cache_read: int | None


class LongPrompts(NamedTuple):
    """The rates of a whole call if its prompt has more than ``over_tokens``. Cached tokens are part of the prompt."""

    over_tokens: int
    rates: Rates


class Price(NamedTuple):
    """A row of the table."""

    models: tuple[str, ...]
    """Exact names, and patterns with ``*``."""
    since: date
    """The first UTC day on which it is known to be valid: that of the vendor's change or release, else when its page was read."""
    rates: Rates
    source: str
    """The vendor's page."""
    long_prompts: LongPrompts | None = None


_Usd = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=6)]


class OwnPrice(BaseModel):
    """One entry of TOKENSPOOL_PRICES: USD per million tokens, on every day and for prompts of any length."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: _Usd
    output: _Usd
    cache_write: _Usd | None = None
    """Unset: as ``input``."""
    cache_read: _Usd | None = None
    """Unset: as ``input``."""


def _pico(usd_per_million: str | Decimal) -> int:
    pico = Decimal(usd_per_million) * _PICO_PER_MILLIONTH
    assert pico == int(pico), f"{usd_per_million} has more than six decimals"
    return int(pico)


def _rates(price_in: str, price_out: str, read: str, write: str | None = None, write_long: str | None = None) -> Rates:
    """USD per million tokens: input, output, cache read, cache write, cache write for an hour."""
    return Rates(
        input=_pico(price_in),
        output=_pico(price_out),
        cache_write=None if write is None else _pico(write),
        cache_write_long=None if write_long is None else _pico(write_long),
        cache_read=_pico(read),
    )


# --- Anthropic -------------------------------------------------------------------------------------------------------

_ANTHROPIC: Final = "https://platform.claude.com/docs/en/about-claude/pricing"
_ANTHROPIC_READ: Final = date(2026, 10, 24)

_FABLE_5: Final = _rates("10", "50", "1", "12.50", "20")
_FABLE_5_1: Final = _rates("10", "50", "0.25", "12.50", "20")
_OPUS_5_5: Final = _rates("4", "20", "0.20", "5", "8")
_OPUS: Final = _rates("5", "25", "0.50", "6.25", "10")
_SONNET_5: Final = _rates("2", "10", "0.20", "2.50", "4")
_SONNET_5_5: Final = _rates("2", "10", "0.10", "2.50", "4")
_SONNET_4: Final = _rates("3", "15", "0.30", "3.75", "6")
_HAIKU_5_5: Final = _rates("0.10", "0.50", "0.01", "0.125", "0.20")
_HAIKU_5_5_LONG: Final = _rates("0.50", "2.50", "0.05", "0.625", "1")
_HAIKU_4_5: Final = _rates("1", "5", "0.10", "1.25", "2")

_OF_ANTHROPIC: Final = (
    Price(("claude-fable-5-1", "claude-mythos-5-1"), date(2026, 9, 1), _FABLE_5_1, _ANTHROPIC),
    Price(("claude-fable-5", "claude-mythos-5"), _ANTHROPIC_READ, _FABLE_5, _ANTHROPIC),
    Price(("claude-opus-5-5",), date(2026, 9, 22), _OPUS_5_5, _ANTHROPIC),
    Price(("claude-opus-5",), date(2026, 7, 24), _OPUS, _ANTHROPIC),
    Price(("claude-opus-4-8", "claude-opus-4-7", "claude-opus-4-6"), _ANTHROPIC_READ, _OPUS, _ANTHROPIC),
    Price(("claude-opus-4-5", "claude-opus-4-5-20*"), date(2025, 11, 24), _OPUS, _ANTHROPIC),
    Price(("claude-sonnet-5-5",), date(2026, 9, 28), _SONNET_5, _ANTHROPIC),
    Price(("claude-sonnet-5-5",), date(2026, 10, 7), _SONNET_5_5, _ANTHROPIC),
    Price(("claude-sonnet-5",), date(2026, 6, 30), _SONNET_5, _ANTHROPIC),
    Price(("claude-sonnet-4-6", "claude-sonnet-4-5", "claude-sonnet-4-5-20*"), _ANTHROPIC_READ, _SONNET_4, _ANTHROPIC),
    Price(("claude-haiku-5-5",), date(2026, 10, 7), _HAIKU_5_5, _ANTHROPIC, LongPrompts(100_000, _HAIKU_5_5_LONG)),
    Price(("claude-haiku-4-5", "claude-haiku-4-5-20*"), _ANTHROPIC_READ, _HAIKU_4_5, _ANTHROPIC),
)

# --- OpenAI ----------------------------------------------------------------------------------------------------------

_OPENAI: Final = "https://developers.openai.com/api/docs/pricing"
_OPENAI_TERRA: Final = "https://developers.openai.com/api/docs/models/gpt-6.1-terra"
_OPENAI_READ: Final = date(2026, 9, 30)
_OPENAI_LONG_TOKENS: Final = 272_000


def _gpt(
    name: str, rates: Rates, long_rates: Rates | None = None, since: date = _OPENAI_READ, source: str = _OPENAI
) -> Price:
    """The price of a model and of its snapshots, whose names end in a date."""
    long_prompts = None if long_rates is None else LongPrompts(_OPENAI_LONG_TOKENS, long_rates)
    return Price((name, f"{name}-20*"), since, rates, source, long_prompts)


# gpt-5.6-sol is missing: its price of 4 and 20 dollars was promised until 2026-11-21, and its price since then is unknown.
# The models up to 5.5 have no price for cache writes: OpenAI neither bills nor reports them separately.
_OF_OPENAI: Final = (
    _gpt("gpt-6-astra", _rates("10", "50", "1", "12.50"), _rates("20", "75", "2", "25"), date(2026, 9, 3)),
    _gpt("gpt-6.1-sol", _rates("2", "10", "0.10", "2.50"), _rates("4", "15", "0.20", "5"), date(2026, 9, 29)),
    _gpt(
        "gpt-6.1-terra",
        _rates("1", "5", "0.05", "1.25", "2.50"),
        _rates("2", "7.50", "0.10", "2.50", "5"),
        date(2026, 10, 26),
        _OPENAI_TERRA,
    ),
    _gpt("gpt-6-sol", _rates("2", "10", "0.20", "2.50"), _rates("4", "15", "0.40", "5"), date(2026, 9, 22)),
    _gpt(
        "gpt-6-luna", _rates("0.10", "0.50", "0.01", "0.125"), _rates("0.20", "0.75", "0.02", "0.25"), date(2026, 9, 22)
    ),
    _gpt("gpt-5.6-terra", _rates("2", "12", "0.20", "2.50"), _rates("4", "18", "0.40", "5"), date(2026, 7, 30)),
    _gpt(
        "gpt-5.6-luna",
        _rates("0.20", "1.20", "0.02", "0.25"),
        _rates("0.40", "1.80", "0.04", "0.50"),
        date(2026, 7, 30),
    ),
    _gpt("gpt-5.5", _rates("5", "30", "0.50"), _rates("10", "45", "1")),
    _gpt("gpt-5.4", _rates("2.50", "15", "0.25"), _rates("5", "22.50", "0.50")),
    _gpt("gpt-5.4-mini", _rates("0.75", "4.50", "0.075")),
    _gpt("gpt-5.4-nano", _rates("0.20", "1.25", "0.02")),
    _gpt("gpt-5.2", _rates("1.75", "14", "0.175")),
    _gpt("gpt-5.1", _rates("1.25", "10", "0.125")),
    _gpt("gpt-5", _rates("1.25", "10", "0.125")),
    _gpt("gpt-5-mini", _rates("0.25", "2", "0.025")),
    _gpt("gpt-5-nano", _rates("0.05", "0.40", "0.005")),
    _gpt("gpt-4.1", _rates("2", "8", "0.50")),
    _gpt("gpt-4.1-mini", _rates("0.40", "1.60", "0.10")),
    _gpt("gpt-4.1-nano", _rates("0.10", "0.40", "0.025")),
    # Not gpt-4o-20*: its oldest snapshot costs twice as much.
    Price(("gpt-4o", "gpt-4o-2024-08-06", "gpt-4o-2024-11-20"), _OPENAI_READ, _rates("2.50", "10", "1.25"), _OPENAI),
    _gpt("gpt-4o-mini", _rates("0.15", "0.60", "0.075")),
)

TABLE: Final[tuple[Price, ...]] = (*_OF_ANTHROPIC, *_OF_OPENAI)


# --- what a call costs -----------------------------------------------------------------------------------------------


class Prices:
    """The prices of a process: first those of TOKENSPOOL_PRICES, then the table's."""

    def __init__(self, own: Mapping[str, OwnPrice] | None = None, table: Sequence[Price] = TABLE) -> None:
        self._own = [_price_of(model, price) for model, price in (own or {}).items()]
        self._table = tuple(table)
        self.price_of = lru_cache(maxsize=1000)(self._price_of)

    def _price_of(self, model: str, day: date) -> Price | None:
        """The row for a model on a UTC day, or None. An exact name wins, else the first pattern that matches.

        Of the rows with that name or pattern, it is the newest that is valid by then.
        """
        for prices in (self._own, self._table):
            name = _name_in(prices, model)
            if name is not None:
                holding = [price for price in prices if name in price.models and price.since <= day]
                return max(holding, key=lambda price: price.since, default=None)
        return None


_MOST_INPUT_ESTIMATE: Final = 200_000
"""In tokens. An image is estimated many times too large, and would reserve a whole budget."""


def estimate_nano_usd(model: str, reservation: Reservation, prices: "Prices", day: date) -> int:
    """What a call may cost at most, in nano-dollars: its estimated input and its longest output. 0 if no price is known."""
    input_tokens = min(reservation.tokens - reservation.max_tokens, _MOST_INPUT_ESTIMATE)
    return cost_nano_usd(model, Usage(input_tokens, reservation.max_tokens), prices, day) or 0


def cost_nano_usd(
    model: str, usage: Usage, prices: Prices, day: date, *, long_cache_write_tokens: int = 0
) -> int | None:
    """The cost of a call on that UTC day, in billionths of a dollar, rounded to the nearest. None: no price is known.

    ``model`` is the one that answered. ``long_cache_write_tokens`` are those of ``cache_creation_input_tokens`` that are
    kept longer than the default. All numbers are integers, so that a million equal calls cost a million times one call.
    """
    price = prices.price_of(model, day)
    if price is None:
        return None
    rates = price.rates
    prompt_tokens = usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens
    if price.long_prompts is not None and prompt_tokens > price.long_prompts.over_tokens:
        rates = price.long_prompts.rates
    pico_usd = 0
    for tokens, rate in (
        (usage.input_tokens, rates.input),
        (usage.output_tokens, rates.output),
        (usage.cache_creation_input_tokens - long_cache_write_tokens, rates.cache_write),
        (long_cache_write_tokens, rates.cache_write_long),
        (usage.cache_read_input_tokens, rates.cache_read),
    ):
        if rate is None and tokens:
            return None
        pico_usd += tokens * (rate or 0)
    return (pico_usd + _PICO_PER_NANO // 2) // _PICO_PER_NANO


def _price_of(model: str, own: OwnPrice) -> Price:
    price_in = _pico(own.input)
    write = price_in if own.cache_write is None else _pico(own.cache_write)
    read = price_in if own.cache_read is None else _pico(own.cache_read)
    rates = Rates(price_in, _pico(own.output), cache_write=write, cache_write_long=write, cache_read=read)
    return Price((model,), date.min, rates, "TOKENSPOOL_PRICES")


def _name_in(prices: Sequence[Price], model: str) -> str | None:
    """The name or pattern of the model in these rows."""
    names = [name for price in prices for name in price.models]
    return model if model in names else next((name for name in names if fnmatchcase(model, name)), None)
