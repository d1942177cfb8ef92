"""Estimates what a call may cost before it is made: the amount reserved in a budget while the job runs."""

from datetime import UTC, datetime

from shared.limits import Reservation
from shared.prices import Prices, estimate_nano_usd
from shared.settings import Settings, routes_of


class Estimates:
    """Uses the prices and routes in the settings."""

    def __init__(self, settings: Settings) -> None:
        self._routes = routes_of(settings)
        self._prices = Prices(settings.prices)

    def of(self, model: str, reservation: Reservation) -> int:
        """Nano-dollars for one call of the model's first route; 0 if its price is unknown."""
        route = self._routes.chain_of(model)[0]
        return estimate_nano_usd(route.model, reservation, self._prices, datetime.now(UTC).date())
