"""Clients that disconnect, and clients that come back with the same Idempotency-Key."""

import asyncio
import random
from typing import Any

import anthropic
import pytest
from anthropic.types import Message

from api.anthropic_compat.message_stream import frames_of_message
from shared.job import JobState
from shared.store import redis_keys
from tests.anthropic_surface.conftest import STEADY, Surface, asked, author_of_next
from tests.support.builders import an_answer, encoded
from tests.support.follower import asking
from tests.support.sse_frames import SseFrames
from tests.support.store import state_of

_KEY = {"Idempotency-Key": "a-key"}
_RICH = "blocks=thinking+citations+tool+text"


async def _call(surface: Surface, *, is_streamed: bool, **headers: str) -> None:
    """A call whose response is not read to its end."""
    body = {**asked(), "stream": is_streamed}
    async with asking(surface.served.url, "/v1/messages", method="POST", body=body, headers=headers) as response:
        await response.read()


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("headers", "state"),
    [
        ({}, JobState.CANCELLED),
        ({"x-on-disconnect": "continue"}, JobState.RUNNING),
        (_KEY, JobState.RUNNING),
        ({**_KEY, "x-on-disconnect": "cancel"}, JobState.CANCELLED),
    ],
)
async def test_a_client_that_disconnects_before_the_answer_begins(
    surface: Surface, is_streamed: bool, headers: dict[str, str], state: JobState
) -> None:
    """Its job is cancelled, unless it asked otherwise or has an Idempotency-Key to come back with."""
    calling = asyncio.create_task(_call(surface, is_streamed=is_streamed, **headers))
    author = await author_of_next(surface.runtime)
    is_attended = state is JobState.CANCELLED
    assert author.claim.spec.may_start_over is not (is_attended and is_streamed)
    calling.cancel()
    if is_attended:
        await surface.has_ended_as(author.job_id, JobState.CANCELLED)
    else:
        await surface.is_left(author)
        assert await state_of(surface.runtime, author.job_id) is state


@pytest.mark.parametrize("headers", [{}, _KEY])
async def test_a_client_that_disconnects_in_mid_answer(surface: Surface, headers: dict[str, str]) -> None:
    """The same as before the answer; the SDK's ``close`` disconnects too."""
    calling = asyncio.create_task(surface.client.messages.create(**asked(), stream=True, extra_headers=headers))
    author = await author_of_next(surface.runtime)
    await author.write(*an_answer("Hel")[:3])
    stream = await calling
    await anext(aiter(stream))
    await stream.close()
    if headers:
        await surface.is_left(author)
        assert await state_of(surface.runtime, author.job_id) is JobState.RUNNING
    else:
        await surface.has_ended_as(author.job_id, JobState.CANCELLED)


async def test_the_same_key_gets_the_whole_answer_after_a_cut_anywhere(surface: Surface, at_work: None) -> None:
    """Streamed or whole, with one call of the LLM."""
    chance = random.Random(4)
    for number in range(8):
        headers = {"Idempotency-Key": f"key-{number}"}
        body = asked(f"nonce=n{number} {_RICH}", model="sim-t60-g2-f1")
        most = chance.randrange(0, 4000)
        async with asking(
            surface.served.url, "/v1/messages", method="POST", body={**body, "stream": True}, headers=headers
        ) as answer:
            read = 0
            while read < most and (piece := await answer.read_some(most - read)):
                read += len(piece)
        async with surface.client.messages.stream(**body, extra_headers=headers) as stream:
            again = await stream.get_final_message()
            assert stream.response.headers["idempotency-replayed"] == "true"
        whole = await surface.client.messages.create(**body, extra_headers=headers)
        again.stop_details = whole.stop_details
        assert _data_of(again) == _data_of(whole)
        assert (await surface.job(answer.headers["x-job-id"])).attempts == 1


async def test_one_key_is_one_job_however_many_ask_at_once(surface: Surface, at_work: None) -> None:
    """Streamed and whole."""

    async def streamed() -> Message:
        async with surface.client.messages.stream(**asked(_RICH), extra_headers=_KEY) as stream:
            return await stream.get_final_message()

    calls: list[Any] = [streamed() for _ in range(4)]
    calls += [surface.client.messages.create(**asked(_RICH), extra_headers=_KEY) for _ in range(4)]
    messages = await asyncio.gather(*calls)
    assert len({message.id for message in messages}) == 1
    assert len({str(message.content[0].to_dict()) for message in messages}) == 1


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_key_with_another_body_is_422(surface: Surface, at_work: None, is_streamed: bool) -> None:
    """The SDK does not retry it."""
    await surface.client.messages.create(**asked(), extra_headers=_KEY)
    with pytest.raises(anthropic.UnprocessableEntityError) as caught:
        await surface.client.messages.create(**asked("Another."), stream=is_streamed, extra_headers=_KEY)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_an_answer_whose_log_was_deleted_is_streamed_from_its_result(surface: Surface, at_work: None) -> None:
    """The stream adds up to the same message."""
    raw = await surface.client.messages.with_raw_response.create(**asked(_RICH), extra_headers=_KEY)
    whole = await raw.parse()
    await surface.runtime._commands.call("DEL", redis_keys.log(raw.headers["x-job-id"]))
    async with surface.client.messages.stream(**asked(_RICH), extra_headers=_KEY) as stream:
        again = await stream.get_final_message()
    again.stop_details = whole.stop_details
    assert _data_of(again) == _data_of(whole)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_key_whose_job_failed_gets_that_failure(surface: Surface, is_streamed: bool) -> None:
    """With the failure's status, even if a part of the answer was streamed; the SDK does not retry it."""
    calling = asyncio.create_task(_call(surface, is_streamed=True, **_KEY))
    author = await author_of_next(surface.runtime)
    await author.write(*an_answer("Hel")[:3])
    await author.fail()
    await calling
    with pytest.raises(anthropic.InternalServerError) as caught:
        await surface.client.messages.create(**asked(), stream=is_streamed, extra_headers=_KEY)
    headers = caught.value.response.headers
    assert (headers["x-should-retry"], headers["idempotency-replayed"]) == ("false", "true")


async def test_of_several_attempts_the_newest_is_streamed(surface: Surface) -> None:
    """However much an earlier attempt of the same claim had streamed."""
    calling = asyncio.create_task(_call(surface, is_streamed=True, **_KEY))
    author = await author_of_next(surface.runtime)
    await author.write(*an_answer("Hel")[:2])
    for start in range(0, 600, 100):
        await author.say(*[f"wrong {number} " for number in range(start, start + 100)])
    await author.try_again(2)
    await calling
    coming_back = asyncio.create_task(surface.client.messages.create(**asked(), stream=True, extra_headers=_KEY))
    await author.write(*an_answer("Right."))
    await author.succeed()
    events = [event async for event in await coming_back]
    assert events[0].type == "message_start"
    assert events[-1].type == "message_stop"
    assert "wrong" not in str(events)


async def test_a_client_that_comes_back_follows_live(surface: Surface, at_work: None) -> None:
    """The first connection goes on too."""
    body = asked("nonce=live", model=STEADY)
    first = await surface.client.messages.create(**body, stream=True, extra_headers=_KEY)
    await anext(aiter(first))
    second = await surface.client.messages.create(**body, stream=True, extra_headers=_KEY)
    assert second.response.headers["idempotency-replayed"] == "true"
    texts = ["".join([_text(event) async for event in stream]) for stream in (second, first)]
    assert texts[0] == texts[1] == "".join([f"live.1.{number} " for number in range(400)])


def test_any_message_can_be_taken_apart() -> None:
    """Also blocks of unknown kinds; blocks that have begun are not begun again."""
    message = {
        "id": "m",
        "content": [{"type": "new_kind", "x": 1}, {"type": "tool_use", "input": {}}],
        "stop_reason": "x",
    }
    frames = SseFrames().feed(frames_of_message(encoded(message)))
    assert [frame.event for frame in frames] == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert '"content_block":{"type":"new_kind","x":1}' in frames[1].data
    begun = SseFrames().feed(frames_of_message(encoded(message), has_begun=True))
    assert begun == frames[1:]


def _text(event: Any) -> str:
    return str(event.delta.text) if event.type == "content_block_delta" else ""


def _data_of(message: Message) -> dict[str, Any]:
    data = message.to_dict()
    for block in data["content"]:  # type: ignore[attr-defined]
        block.pop("parsed_output", None)
    data.pop("stop_details", None)
    return data
