"""Upstreams' lists of models may hold anything: entries that are not models are skipped."""

import msgspec
import pytest

from shared.model_info import UNKNOWN_TIME, ModelInfo, distinct
from worker.providers.model_list import anthropic_page, openai_models

TIME = "2026-02-03T04:05:06Z"


def a_page(*rows: object, **members: object) -> bytes:
    return msgspec.json.encode({"data": rows, **members})


def test_a_page_is_read_with_its_times_and_names() -> None:
    page = anthropic_page(
        a_page(
            {"type": "model", "id": "a", "display_name": "A", "created_at": TIME},
            {"id": "b", "display_name": "line\nbreak", "created_at": "once"},
        )
    )
    assert page.models == [ModelInfo("a", "A", TIME), ModelInfo("b", "b", UNKNOWN_TIME)]
    assert page.after_id is None


_DETAILS = {
    "max_input_tokens": 200_000,
    "max_tokens": 64_000,
    "lifecycle": "deprecated",
    "deprecated_at": TIME,
    "retires_at": None,
    "line": "opus",
    "capabilities": {"batch": {"supported": True}, "thinking": {"types": {"new one": 1.5}}},
}


def test_the_details_of_a_model_are_kept_unchanged() -> None:
    """Missing details are not made up, and unknown ones are dropped."""
    page = anthropic_page(a_page({"id": "a", **_DETAILS, "unknown": 1}, {"id": "b", "lifecycle": ["odd"]}))
    assert [msgspec.to_builtins(model.details) for model in page.models] == [_DETAILS, {"lifecycle": ["odd"]}]


def test_a_model_of_which_too_much_is_said_keeps_its_name() -> None:
    page = anthropic_page(a_page({"id": "a", "capabilities": "x" * 9_000}, {"id": "b", "max_tokens": 1}))
    assert [(model.id, msgspec.to_builtins(model.details)) for model in page.models] == [
        ("a", {}),
        ("b", {"max_tokens": 1}),
    ]


def test_a_page_says_where_the_next_begins() -> None:
    assert anthropic_page(a_page({"id": "a"}, has_more=True, last_id="a")).after_id == "a"
    assert anthropic_page(a_page({"id": "a"}, has_more=False, last_id="a")).after_id is None
    assert anthropic_page(a_page(has_more=True)).after_id is None


def test_a_chat_servers_list_is_read() -> None:
    body = a_page({"id": "a", "created": 1_770_091_506}, {"id": "b"}, {"id": "c", "created": 1e300})
    assert openai_models(body) == [
        ModelInfo("a", "a", TIME),
        ModelInfo("b", "b", UNKNOWN_TIME),
        ModelInfo("c", "c", UNKNOWN_TIME),
    ]


@pytest.mark.parametrize("row", [None, 1, "a", [], {}, {"id": None}, {"id": 1}, {"id": "x", "created": "then"}])
def test_what_is_no_model_is_passed_over(row: object) -> None:
    assert [model.id for model in openai_models(a_page({"id": "a"}, row, {"id": "b"}))] == ["a", "b"]


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"data":{}}', b'{"data":null}', b'{"models":[]}', b"\xff", b"[" * 9_999]
)
def test_a_body_that_is_no_list_has_no_models(body: bytes) -> None:
    assert openai_models(body) == []
    assert anthropic_page(body) == ([], None)


def test_ids_that_nobody_can_name_are_dropped_and_each_is_there_once() -> None:
    ids = ["a", "", "b\n", "c" * 257, "a", "d" * 256, "\ud800"]
    assert [model.id for model in distinct(ModelInfo(name, name, TIME) for name in ids)] == ["a", "d" * 256]


def test_there_are_no_more_than_two_thousand() -> None:
    assert len(distinct(ModelInfo(str(number), "", TIME) for number in range(3_000))) == 2_000
