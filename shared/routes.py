"""Which upstream serves a model, and which models are its fallbacks.

A **route** is an upstream and a model: what has limits, a gate and a circuit of its own. TOKENSPOOL_ROUTES maps the models
that callers name to routes; a model that no pattern fits goes to TOKENSPOOL_PROVIDER under its own name. Pure.
"""

from collections.abc import Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class ProviderName(StrEnum):
    """The kinds of upstream."""

    ANTHROPIC = "anthropic"
    """The Messages API."""
    OPENAI = "openai"
    """Chat completions, of OpenAI or any server that speaks them."""


_PerMinute = Annotated[int, Field(ge=1)]
_Model = Annotated[str, Field(min_length=1, max_length=256)]


class RouteRule(BaseModel):
    """One entry of TOKENSPOOL_ROUTES. Its limits hold for each model that the pattern matches, over all workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: ProviderName | None = None
    """Unset: TOKENSPOOL_PROVIDER."""
    model: _Model | None = None
    """The upstream's name for it. Unset: the caller's name."""
    fallback: tuple[_Model, ...] = Field((), max_length=8)
    """Models that are called instead, in this order, while the one before is overloaded or its circuit is open."""
    requests_per_minute: _PerMinute | None = None
    input_tokens_per_minute: _PerMinute | None = None
    output_tokens_per_minute: _PerMinute | None = None
    concurrency: _PerMinute | None = None

    @property
    def limits(self) -> "Limits":
        """The limits of one route."""
        return Limits(
            self.requests_per_minute, self.input_tokens_per_minute, self.output_tokens_per_minute, self.concurrency
        )


class Limits(NamedTuple):
    """What a route can take; None: no limit is known."""

    requests: int | None = None
    """Per minute."""
    input_tokens: int | None = None
    """Per minute."""
    output_tokens: int | None = None
    """Per minute."""
    concurrency: int | None = None
    """Calls at once."""


class Route(NamedTuple):
    """An upstream and a model."""

    provider: ProviderName
    model: str
    limits: Limits = Limits()

    @property
    def name(self) -> str:
        """Its name in Redis keys, logs and ``/health``."""
        return f"{self.provider}/{self.model}"


CHAIN_SEPARATOR: Final = "\n"
"""No model name may contain it (see check_model), or a caller could forge a chain whose second route is open."""


class Routes:
    """Finds the route of a model, from the settings."""

    def __init__(self, rules: Mapping[str, RouteRule], default: ProviderName) -> None:
        self._rules = dict(rules)
        self._default = default
        self.chain_of = lru_cache(maxsize=1_000)(self._chain_of)

    @property
    def providers(self) -> set[ProviderName]:
        """All providers that a job can need."""
        return {self._default, *(rule.provider for rule in self._rules.values() if rule.provider)}

    def _chain_of(self, model: str) -> tuple[Route, ...]:
        """The route of a model, then those of its fallbacks. A fallback's own fallbacks are ignored."""
        rule = self._rule_of(model)
        chain = [self._route_of(name) for name in (model, *rule.fallback)]
        return tuple({route.name: route for route in chain}.values())

    def chain_name_of(self, model: str) -> str:
        """The chain's name in the queue: jobs of one chain wait in one flow."""
        return CHAIN_SEPARATOR.join(route.name for route in self.chain_of(model))

    def _route_of(self, model: str) -> Route:
        rule = self._rule_of(model)
        return Route(rule.provider or self._default, rule.model or model, rule.limits)

    def _rule_of(self, model: str) -> RouteRule:
        """An exact name, else the first pattern that matches."""
        if exact := self._rules.get(model):
            return exact
        return next((rule for pattern, rule in self._rules.items() if fnmatchcase(model, pattern)), _NO_RULE)


_NO_RULE: Final = RouteRule()
