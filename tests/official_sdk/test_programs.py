"""A program written for the SDK sees the same from tokenspool as from the upstream itself; only the base URL differs.

Each program runs against the stand-in for the Anthropic API and against tokenspool with such a stand-in, and must print
the same. Where we differ on purpose, a row in a table below says how and why.
"""

import asyncio
import re
from typing import Any, Final, NamedTuple

import pytest

from tests.official_sdk.conftest import Sdk, Seen
from tests.support.deployment import MODEL, Deployment

pytestmark = pytest.mark.timeout(90)


class Differs(NamedTuple):
    """We differ here from the upstream, on purpose."""

    seen: dict[str, Any]
    """What changes in what the program sees."""
    why: str


_OURS_500: Final = {
    "error": "InternalServerError",
    "bases": ["APIStatusError", "APIError"],
    "status": 500,
    "type": "api_error",
    "type_attribute": "api_error",
    "has_message": True,
    "has_request_id": True,
}
_IN_THE_STREAM: Final = {"error": "APIStatusError", "bases": ["APIError"], "status": 200, "has_message": True}
_BROKEN_OFF: Final = {
    **_IN_THE_STREAM,
    "type": "overloaded_error",
    "type_attribute": "overloaded_error",
    "has_request_id": True,
}

ERRORS: Final = {
    "credentials": Differs(_OURS_500, "it is our key that was refused, of which the program knows nothing"),
    "permission": Differs(_OURS_500, "it is our key that may not do that"),
    "conflict": Differs(_OURS_500, "the upstream's conflict is with our retries, not with the program"),
    "connection reset": Differs(_OURS_500, "it was our connection, and the program's own holds"),
}
STREAM: Final = {
    "cut in the middle": Differs(
        _BROKEN_OFF, "an SDK takes a stream that just ends for a success; ours never does that"
    ),
    "broken in the middle": Differs(_BROKEN_OFF, "whatever broke behind the first words: the program is to begin anew"),
    "connection lost in the middle": Differs(_BROKEN_OFF, "it was our connection, and the program's own holds"),
}
RETRIES: Final = {
    "the same key twice": Differs({"same": True}, "one key is one answer"),
    "impatient with a key": Differs(
        {"error": None, "stop_reason": "end_turn"}, "the job goes on, and the SDK's own retry finds it again"
    ),
}


async def both(sdk: Sdk, program: str, reference_url: str, deployment: Deployment) -> tuple[Seen, Seen]:
    """What a program sees of the upstream, and of us."""
    reference, ours = await asyncio.gather(sdk.sees(program, reference_url), sdk.sees(program, deployment.apis[0].url))
    assert reference.keys() == ours.keys()
    return normal(reference), normal(ours)


def normal(seen: Seen) -> Seen:
    """Without what is another one in each answer: the number in the stand-in's ids."""
    return {key: _normal(value) for key, value in seen.items()}


def _normal(value: Any) -> Any:
    match value:
        case {"events": list(events)}:
            return {**value, "events": _joined([_normal(event) for event in events])}
        case dict():
            return {name: _normal(member) for name, member in value.items()}
        case list():
            return [_normal(member) for member in value]
        case str():
            return re.sub(r"simulated_\d{8}", "simulated_#", value)
    return value


_PIECES: Final = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def _joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without where a text was cut into deltas, which is nobody's promise: neighbours of a block are one."""
    joined: list[dict[str, Any]] = []
    helpers = [event for event in events if set(event) == {"type"} and event["type"] in _MADE_BY_THE_HELPER]
    for event in [event for event in events if event not in helpers]:
        last = joined[-1] if joined else {}
        piece = _PIECES.get((event.get("delta") or {}).get("type", ""))
        if (
            piece
            and last.get("index") == event["index"]
            and (last.get("delta") or {}).get("type") == event["delta"]["type"]
        ):
            last["delta"][piece] += event["delta"][piece]
        else:
            joined.append(event)
    return [*joined, *sorted({event["type"]: event for event in helpers}.values(), key=lambda event: event["type"])]


_MADE_BY_THE_HELPER: Final = ("text", "input_json", "thinking", "signature", "citation")


def with_exceptions(sdk: Sdk, reference: Seen, exceptions: dict[str, Differs]) -> Seen:
    """What we are expected to be like. Each exception must still be one."""
    for case, differs in exceptions.items():
        for mode in ("sync", "async"):
            seen = reference[case, mode]
            assert any(seen.get(name) != value for name, value in differs.seen.items()), f"{case} does not differ"
            expected = {**seen, **differs.seen}
            if sdk.version == "0.75" and "type_attribute" in expected:
                expected["type_attribute"] = None  # its errors do not have it
            reference[case, mode] = expected
    return reference


async def test_what_is_created_is_what_the_upstream_says(sdk: Sdk, reference_url: str, deployment: Deployment) -> None:
    """Text, tools, thinking, citations, images; each reason to stop; each member of the message and of its usage."""
    reference, ours = await both(sdk, "create", reference_url, deployment)
    assert ours == reference


async def test_a_stream_is_the_upstreams_stream(sdk: Sdk, reference_url: str, deployment: Deployment) -> None:
    """Texts, events and final messages; and a failure is an exception, before the answer and in the middle of it."""
    reference, ours = await both(sdk, "stream", reference_url, deployment)
    assert ours == with_exceptions(
        sdk, reference, {**STREAM, **{f"helper, {case}": row for case, row in STREAM.items()}}
    )


async def test_each_error_is_the_class_that_a_program_catches(
    sdk: Sdk, reference_url: str, deployment: Deployment
) -> None:
    """With its status, its type, a message and a request id."""
    reference, ours = await both(sdk, "errors", reference_url, deployment)
    assert ours == with_exceptions(sdk, reference, ERRORS)


async def test_what_the_sdk_repeats_by_itself_is_one_job_with_a_key(
    sdk: Sdk, reference_url: str, deployment: Deployment
) -> None:
    """Without one each retry is another call; with one the same answer comes, and the LLM was called once."""
    reference, ours = await both(sdk, "retries", reference_url, deployment)
    for mode in ("sync", "async"):
        del reference["a stream again", mode]  # the second call's answer, where ours is still the first's
        said = "".join(f"{sdk.run}-stream-again-{mode}.1.{index} " for index in range(40))
        assert ours.pop(("a stream again", mode)) == {"said": said}
        for case in ("twice", "impatient-with-a-key", "stream-again"):
            calls = await deployment.calls(f"{sdk.run}-{case}-{mode}")
            assert [call.ended for call in calls] == ["completed"], f"{case}, {mode}"
    assert ours == with_exceptions(sdk, reference, RETRIES)
    # Without a key, each time-out cancelled its job, and each retry was another one.
    calls = await deployment.calls(f"{sdk.run}-impatient-async")
    assert [call.ended for call in calls] == ["client_closed"] * 3


async def test_tokens_are_counted_and_models_listed(sdk: Sdk, reference_url: str, deployment: Deployment) -> None:
    """By pages in both directions; ours have the default model too, which the upstream may not list."""
    reference, ours = await both(sdk, "count_and_models", reference_url, deployment)
    for (case, _), seen in ours.items():
        if "models" in seen:
            assert MODEL in seen["models"], case
            seen["models"].remove(MODEL)
    assert ours == reference
