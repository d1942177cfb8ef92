"""Every route and method of the application, read from it, so that no new one escapes the tests."""

import re
from typing import Final, NamedTuple

from starlette.routing import BaseRoute, Route

from api.app import create_app
from shared.settings import load_settings

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

NO_TENANTS: Final = frozenset(
    {"/v1/models/{model_id:path}", "/problems/{code}", "/v1/tenants/{name}", "/dashboard/{path:path}"}
)
"""Paths whose parameters belong to no tenant. Those of operators have tests of their own in test_operator.py."""
OF_OPERATORS: Final = ("/v1/tenants", "/v1/workers")
"""What only keys with the scope operator may ask for."""
ENDLESS: Final = "/v1/live"
"""A stream of what /v1/stats shows, which does not end by itself."""

_OWNED: Final = {
    "/v1/jobs/": ("job_id", "job"),
    "/v1/batches/": ("batch_id", "batch"),
    "/v1/messages/batches/": ("batch_id", "msgbatch"),
    "/v1/keys/": ("key_id", "key"),
    "/v1/operations/": ("operation_id", "op"),
    "/v1/webhooks/deliveries/": ("delivery_id", "evt"),
}
"""By the beginning of a path with a tenant's id: the parameter's name and the id's kind."""


class OwnedPath(NamedTuple):
    """A path with a tenant's id."""

    path: str
    """The whole path, with ``{}`` for the id."""
    kind: str
    methods: frozenset[str]
    """The methods of its routes."""

    def of(self, own_id: str) -> str:
        """The path with an id."""
        return self.path.format(own_id)


def routes() -> list[Route]:
    """All routes. A mount or a websocket would need its own tests."""
    found: list[BaseRoute] = create_app(load_settings(auth="off")).router.routes
    plain = [route for route in found if isinstance(route, Route)]
    assert plain == found, "a kind of route that these tests do not know"
    return plain


def paths_without_parameters() -> dict[str, frozenset[str]]:
    """The paths without parameters, with their methods."""
    return {path: methods for path, methods in _methods_by_path().items() if "{" not in path}


def owned_paths() -> list[OwnedPath]:
    """The paths with a tenant's id. Raises AssertionError for an unknown path parameter."""
    return [
        _owned(path, methods) for path, methods in _methods_by_path().items() if "{" in path and path not in NO_TENANTS
    ]


def _methods_by_path() -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for route in routes():
        found[route.path] = found.get(route.path, frozenset()) | (route.methods or frozenset())
    return found


def _owned(path: str, methods: frozenset[str]) -> OwnedPath:
    names = re.findall(r"\{([^}]*)\}", path)
    for prefix, (name, kind) in _OWNED.items():
        if path.startswith(f"{prefix}{{{name}}}") and names == [name]:
            return OwnedPath(path.replace(f"{{{name}}}", "{}"), kind, methods)
    raise AssertionError(f"{path}: say here whose the ids in it are, and test it with another tenant's")
