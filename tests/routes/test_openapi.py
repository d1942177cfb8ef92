"""``/openapi.json`` describes what the routes do."""

import re
from typing import Any

from starlette.routing import Route

from api.app import create_app
from api.http.anthropic_errors import is_on_surface
from api.http.errors import PROBLEM_JSON
from api.jobs.request import JobOptions
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
    """Every schema is used."""
    document = _document()
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert _references(document) == schemas


def test_every_operation_declares_its_responses() -> None:
    """Its success and its errors, but not FastAPI's 422."""
    for path, operations in _document()["paths"].items():
        for method, operation in operations.items():
            statuses = set(operation["responses"])
            assert statuses & {"200", "201", "202", "204"}, (method, path)
            assert "HTTPValidationError" not in str(operation)
            if path.startswith(("/v1", "/complete")):
                assert {"400", "401", "403", "503"} <= statuses, (method, path)


def test_errors_are_declared_in_the_form_of_their_surface() -> None:
    """The envelope of the Messages API under its paths, and problem documents elsewhere."""
    surfaces = set()
    for path, operations in _document()["paths"].items():
        of_anthropic = is_on_surface(path)
        surfaces.add(of_anthropic)
        expected = ("application/json", "ErrorEnvelope") if of_anthropic else (PROBLEM_JSON, "ProblemDocument")
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                if status >= "400" and not path.startswith("/health"):
                    content_type, name = expected
                    schema = {"schema": {"$ref": f"#/components/schemas/{name}"}}
                    assert answer["content"] == {content_type: schema}, (method, path, status)
    assert surfaces == {True, False}


def test_every_placeholder_in_a_path_is_a_parameter() -> None:
    """Also for routes that FastAPI does not see."""
    for path, operations in _document()["paths"].items():
        for method, operation in operations.items():
            named = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path)), (method, path)


def test_every_route_is_declared() -> None:
    """With its methods, except for the document itself and the dashboard's files."""
    app = create_app(load_settings(auth="off"))
    served = {
        (method.lower(), re.sub(r":\w+\}", "}", route.path))
        for route in app.router.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    declared = {(method, path) for path, operations in app.openapi()["paths"].items() for method in operations}
    assert served - declared == {
        ("get", "/openapi.json"),
        ("get", "/"),
        ("get", "/dashboard/config.json"),
        ("get", "/dashboard/{path}"),
    }
    assert declared <= served


def test_a_batch_may_come_in_both_forms() -> None:
    """The options of a JSON-lines body are query parameters, with the bounds of the ``job`` member."""
    document = _document()
    operation = document["paths"]["/v1/batches"]["post"]
    assert set(operation["requestBody"]["content"]) == {"application/json", "application/jsonl"}
    query = {each["name"]: each["schema"] for each in operation["parameters"] if each["in"] == "query"}
    options = document["components"]["schemas"]["BatchOptions"]["properties"]
    of_webhook = {"webhook.url", "webhook.events", "webhook.result"}
    assert of_webhook <= set(query)
    query = {name: schema for name, schema in query.items() if name not in of_webhook} | {"webhook": {}}
    assert set(query) == set(options) == {field.alias or name for name, field in JobOptions.model_fields.items()}
    assert all(query[name] == options[name] for name in options if name not in ("metadata", "webhook"))


def test_streams_are_declared() -> None:
    """By hand, since the framework does not see them."""
    paths = _document()["paths"]
    for method, path in (("post", "/v1/jobs"), ("get", "/v1/jobs/{job_id}/events"), ("post", "/complete/stream")):
        assert "text/event-stream" in paths[path][method]["responses"]["200"]["content"]


def test_every_parameter_is_named_once() -> None:
    """FastAPI's parameters and ours do not overlap."""
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
    assert list(await api.job(job["id"], partial="true")) == [name for name in view["properties"] if name != "tenant"]
    assert set(view["required"]) == set(view["properties"]) - {"result", "partial", "tenant"}
