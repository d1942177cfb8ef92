"""Bodies as models: what each kind of member takes, how what it does not take is named, and what comes out."""

import json
from functools import partial
from typing import Annotated, Any

import msgspec
import pytest
from pydantic import ValidationError

from api.batches.items import BatchOptions, BatchRequest, options_of_job
from api.http.invalid import MOST_ERRORS
from api.http.members import Body, Text, Whole, read
from api.http.strict_json import decode
from api.jobs.request import NO_BOUNDS, Bounds, Draft, JobOptions, JobRequest, Parameters, draft_of, spec_members
from api.state.parsers import Parsers
from shared.errors import InvalidRequest
from shared.job import JobSpec, Priority
from shared.limits import MULTIPLIERS, OUTPUT_BOUNDS
from shared.webhooks import EventType


class _Numbers(Body):
    whole: Annotated[int, Whole(1, 1000)] = 1
    or_null: Annotated[int | None, Whole(1, 1000, or_null=True)] = None
    text: Annotated[str, Text(1, 3, is_printable=True)] = "x"


def _refused(model: type[Body], body: Any, **kwargs: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        read(model, body, **kwargs)
    return [(error.pointer, error.detail) for error in caught.value.errors]


@pytest.mark.parametrize("value", [7, 7.0])
def test_a_whole_number_is_one_however_it_is_written(value: Any) -> None:
    found = read(_Numbers, {"whole": value, "or_null": value})
    assert (found.whole, found.or_null) == (7, 7)
    assert type(found.whole) is type(found.or_null) is int


@pytest.mark.parametrize("value", [True, False, "7", 7.5, 0, 1001, 10**400, -(10**400), 1e300, [], {}])
def test_what_is_no_whole_number_is_refused_with_its_bounds(value: Any) -> None:
    """``true`` is none, though Python's is; and no number is too large to be refused."""
    assert _refused(_Numbers, {"whole": value}) == [("#/whole", "must be a whole number from 1 to 1000")]
    assert _refused(_Numbers, {"or_null": value}) == [("#/or_null", "must be a whole number from 1 to 1000, or null")]


def test_null_is_a_value_only_where_it_says_so() -> None:
    assert read(_Numbers, {"or_null": None}).or_null is None
    assert _refused(_Numbers, {"whole": None}) == [("#/whole", "must be a whole number from 1 to 1000")]
    for name in JobOptions.model_fields:
        if name not in ("not_before_ms", "webhook"):
            assert _refused(JobOptions, {name: None})[0][0] == f"#/{name}"


@pytest.mark.parametrize("value", ["", "abcd", "a\n", "\x7f", 7, None])
def test_what_is_no_such_text_is_refused(value: Any) -> None:
    assert _refused(_Numbers, {"text": value}) == [("#/text", "must be a text of 1 to 3 printable characters")]


def test_a_name_that_may_be_content_is_not_repeated() -> None:
    """The pointer then stops at its parent."""
    assert _refused(_Numbers, {"a secret": 1, "wohle": 2}) == [
        ("#", "has a member that is not known"),
        ("#/wohle", "is not known"),
    ]
    assert _refused(JobOptions, {"metadata": {"a secret": 1}}) == [
        ("#/metadata", "must be a text of at most 512 characters")
    ]
    # What pydantic calls an error in a name.
    assert _refused(JobOptions, {"[key]": 1}) == [("#", "has a member that is not known")]
    assert _refused(JobRequest, {"job": {"[key]": 1}}) == [("#/job", "has a member that is not known")]
    for name, value in (("[key]", 1), ("", "x"), ("x" * 65, "x")):
        assert [pointer for pointer, _ in _refused(JobOptions, {"metadata": {name: value}})] == ["#/metadata"]


def test_of_many_errors_the_first_are_named() -> None:
    """A body may be wrong in ten thousand places."""
    errors = _refused(_Numbers, {f"x{number}": 0 for number in range(10_000)})
    assert errors == [(f"#/x{number}", "is not known") for number in range(MOST_ERRORS)]
    errors = _refused(JobOptions, {"metadata": {f"x{number}": 0 for number in range(10_000)}})
    assert errors == [("#/metadata", "must be an object of at most 16 members")]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [1] * 10_000},
        {"messages": [{}] * 10_000},
        {"prompt": "x", "job": {f"x{number}": 0 for number in range(10_000)}},
        {"prompt": "x", "job": {"webhook": {f"x{number}": 0 for number in range(10_000)}}},
        {"prompt": "x", "job": {"metadata": {f"x{number}": 0 for number in range(10_000)}}},
        {"prompt": "x", "job": {"tags": [1] * 10_000}},
        {"prompt": "x", "job": {"webhook": {"url": "https://example.com/", "events": [1] * 10_000}}},
    ],
    ids=lambda body: str(body)[:40],
)
def test_no_more_errors_are_made_than_are_named(body: Any) -> None:
    """Each costs microseconds of the event loop."""
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate(body, context=NO_BOUNDS)
    assert caught.value.error_count() <= MOST_ERRORS + 2


def test_a_message_is_looked_at_as_far_as_every_model_needs_it() -> None:
    """What else it holds is the LLM's to judge."""
    good = [{"role": "", "content": ""}, {"role": "x", "content": [1], "x": 1}, {"content": [], "role": "user"}]
    assert read(JobRequest, {"messages": good}).messages == good
    bad = [*good, 1, {}, {"role": None, "content": None}]
    assert _refused(JobRequest, {"messages": bad}) == [
        ("#/messages/3", "must be an object"),
        ("#/messages/4/role", "is missing"),
        ("#/messages/4/content", "is missing"),
        ("#/messages/5/role", "must be a text"),
        ("#/messages/5/content", "must be a text or a list of blocks"),
    ]
    assert _refused(JobRequest, {"messages": []}) == [("#/messages", "must not be empty")]
    assert _refused(JobRequest, {"messages": {}}) == [("#/messages", "must be a list")]


def test_what_is_passed_on_is_what_was_sent() -> None:
    """Member for member and in order, also inside of messages; only the numbers that we count become whole."""
    body = {"top_p": 1.0, "messages": [{"z": 1.0, "content": [{"b": 2, "a": [1.50]}], "role": "user"}], "n": 2.0}
    draft = draft_of({**body, "stream": False, "job": {}}, default_model="m")
    assert json.loads(draft.request) == {"model": "m", "max_tokens": 1024, **body}
    assert draft.request == msgspec.json.encode({"model": "m", "max_tokens": 1024, **body, "n": 2})
    body = {"temperature": 0.5, "prompt": "\u2028 \U0001f99c", "max_tokens": 7.0}
    assert draft_of(body, default_model="m").request == (
        '{"model":"m","max_tokens":7,"temperature":0.5,"messages":[{"role":"user","content":"\u2028 \U0001f99c"}]}'.encode()
    )


def _draft_of(raw: bytes, bounds: Bounds) -> Draft:
    return draft_of(decode(raw), default_model="m", bounds=bounds)


async def test_a_draft_comes_back_whole_from_another_process() -> None:
    """Where large bodies are parsed."""
    options = {"webhook": {"url": "https://example.com/"}, "not_before": "2026-11-23T14:02:11Z", "metadata": {"a": "b"}}
    body = json.dumps({"prompt": "x" * (1 << 20), "job": options}).encode()
    async with Parsers() as parsers:
        draft = await parsers.parse("acme", body, partial(_draft_of, bounds=Bounds()))
        with pytest.raises(InvalidRequest) as caught:
            await parsers.parse("acme", body, partial(_draft_of, bounds=Bounds(latest_not_before_ms=0)))
    assert draft == _draft_of(body, Bounds())
    assert draft.options.webhook is not None
    assert draft.options.webhook.events == tuple(sorted(set(EventType) - {EventType.BATCH_ENDED}))
    assert [error.pointer for error in caught.value.errors] == ["#/job/not_before"]


def test_the_parameters_that_we_count_are_those_that_are_reserved() -> None:
    """By whichever name they are passed on."""
    assert tuple(Parameters.model_fields) == (*OUTPUT_BOUNDS[1:], *MULTIPLIERS)


def test_the_options_of_a_job_reach_its_spec_by_their_names() -> None:
    """All but two, which SUBMIT takes apart: an option is declared in the model and in the spec, and nowhere else."""
    assert set(JobOptions.model_fields) - set(spec_members(JobOptions())) == {"expires_in_s", "webhook"}
    spec = JobSpec(model="m", **spec_members(JobOptions(timeout_s=7, metadata={"a": "b"})))
    assert (spec.timeout_s, spec.metadata, spec.priority) == (7, {"a": "b"}, Priority.NORMAL)
    assert spec_members(spec) == spec_members(JobOptions(timeout_s=7, metadata={"a": "b"}))


def test_the_options_of_a_batch_are_a_jobs_but_for_their_priority_and_events() -> None:
    assert set(BatchOptions.model_fields) == set(JobOptions.model_fields)
    assert set(BatchRequest.model_fields) == {"requests", "job"}
    found = options_of_job(b'{"webhook":{"url":"https://example.com/"},"timeout_s":7.0}', Bounds())
    assert found.webhook is not None
    assert (found.timeout_s, found.priority, found.webhook.events) == (7, Priority.LOW, (EventType.BATCH_ENDED,))
    with pytest.raises(InvalidRequest) as caught:
        options_of_job(b'{"priority":"high","webhook":{"url":"x"}}', Bounds())
    assert [error.pointer for error in caught.value.errors] == ["#/job/priority", "#/job/webhook/url"]
