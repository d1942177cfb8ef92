"""``/openapi.json``: what it says is what the routes do."""

from typing import Any

from api.app import create_app
from shared.settings import load_settings
from tests.routes.conftest import A_BODY, CalledApi
from tests.support.author import Author


def _document() -> Any:
    return create_app(load_settings(auth="off")).openapi()


def _references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(_references(child) for child in node.values()))
    if isinstance(node, list):
        return set().union(*(_references(child) for child in node))
    return set()


def test_every_reference_leads_somewhere() -> None:
    """And every schema is used."""
    document = _document()
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert _references(document) == schemas


def test_every_operation_says_how_it_answers() -> None:
    """Its success and its errors, and no 422 of FastAPI's."""
    for path, operations in _document()["paths"].items():
        for method, operation in operations.items():
            statuses = set(operation["responses"])
            assert statuses & {"200", "202", "204"}, (method, path)
            assert "HTTPValidationError" not in str(operation)
            if path.startswith(("/v1", "/complete")):
                assert {"400", "401", "503"} <= statuses, (method, path)


def test_streams_are_declared() -> None:
    """By hand: no framework sees them."""
    paths = _document()["paths"]
    for method, path in (("post", "/v1/jobs"), ("get", "/v1/jobs/{job_id}/events"), ("post", "/complete/stream")):
        assert "text/event-stream" in paths[path][method]["responses"]["200"]["content"]


def test_every_parameter_is_named_once() -> None:
    """What FastAPI finds and what we add do not overlap."""
    for path, operations in _document()["paths"].items():
        for operation in operations.values():
            names = [(parameter["in"], parameter["name"]) for parameter in operation.get("parameters", [])]
            assert len(names) == len(set(names)), path


async def test_a_job_has_exactly_the_members_that_are_declared(api: CalledApi) -> None:
    """In their order."""
    document = (await api.http.get("/openapi.json")).json()
    job = await api.submitted(A_BODY)
    author = await Author.claim_next(api.runtime)
    await author.succeed()
    view = document["components"]["schemas"]["JobView"]
    assert list(await api.job(job["id"])) == list(view["properties"])
    assert set(view["required"]) == set(view["properties"]) - {"result"}
