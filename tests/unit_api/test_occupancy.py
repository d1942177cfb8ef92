"""A tenant's requests leave connections for others."""

from typing import Any

import pytest

from api.state.occupancy import Occupancy
from shared.errors import TooManyConnections


def _enter(occupancy: Occupancy, tenant: str, most: int = 1000) -> list[dict[str, Any]]:
    """Enters requests until one is refused; returns the accepted ones."""
    entered: list[dict[str, Any]] = []
    try:
        for _ in range(most):
            scope: dict[str, Any] = {}
            occupancy.enter(scope, tenant)
            entered.append(scope)
    except TooManyConnections:
        pass
    return entered


def test_alone_a_tenant_has_three_quarters() -> None:
    """It has them again after its requests have ended."""
    occupancy = Occupancy(60)
    held = _enter(occupancy, "acme")
    assert len(held) == 45
    for scope in held:
        occupancy.leave(scope)
    assert len(_enter(occupancy, "acme")) == 45


def test_others_find_room_next_to_a_full_tenant() -> None:
    """However many tenants fill their shares."""
    occupancy = Occupancy(60)
    _enter(occupancy, "first")
    assert [len(_enter(occupancy, name)) for name in ("second", "third")] == [12, 3]


def test_a_request_counts_once() -> None:
    """Even if its caller is resolved twice. A request that never entered is not counted down."""
    occupancy = Occupancy(2)
    scope: dict[str, Any] = {}
    for _ in range(5):
        occupancy.enter(scope, "acme")
    occupancy.leave(scope)
    occupancy.leave(scope)
    occupancy.leave({})
    occupancy.enter({}, "acme")


def test_one_request_is_always_accepted() -> None:
    """Otherwise a tenant might never be served if few connections are left."""
    occupancy = Occupancy(1)
    occupancy.enter({}, "acme")
    occupancy.enter({}, "other")
    with pytest.raises(TooManyConnections):
        occupancy.enter({}, "acme")
