"""``GET /v1/jobs/{id}/events``: its parameters and its ends. The events themselves are tested in tests/stream."""

import json
from typing import Any

import pytest

from tests.routes.conftest import CalledApi, pointers_of, problem_of
from tests.support.author import Author
from tests.support.follower import asking
from tests.support.served import Served
from tests.support.sse_frames import Frame, SseFrames

_BAD_CURSORS = ["0", "now-1", "1-2-3", "-1", "1-", "1 -1", "١-١", "9" * 400 + "-1", "1-1\x00", "*", "$"]


async def _ended(served: Served) -> Author:
    author = await Author.start(served.api.runtime)
    await author.open()
    await author.say("Hel", "lo.")
    await author.succeed()
    return author


async def _frames(served: Served, job_id: str, query: str = "", **headers: str) -> list[Frame]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with asking(served.url, f"/v1/jobs/{job_id}/events{query}", headers=named) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"
        return SseFrames().feed(await answer.read())


async def test_an_ended_job_is_told_from_the_start_with_the_job_as_last_event(served: Served) -> None:
    """The last event is what a read answers."""
    author = await _ended(served)
    frames = await _frames(served, author.job_id)
    assert [frame.event for frame in frames] == ["started", "delta", "delta", "succeeded"]
    async with asking(served.url, f"/v1/jobs/{author.job_id}") as answer:
        assert json.loads(frames[-1].data) == await answer.json()


async def test_format_messages_tells_the_events_of_the_upstream(served: Served) -> None:
    """As they are, ours between them."""
    author = await _ended(served)
    frames = await _frames(served, author.job_id, "?format=messages")
    assert [frame.event for frame in frames] == [
        "started", "message_start", "content_block_delta", "content_block_delta", "succeeded",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["text", "messages"])
async def test_a_cursor_goes_on_behind_its_event(served: Served, form: str) -> None:
    """By the header as browsers send it, or by the query as people do; the header wins."""
    author = await _ended(served)
    log = await author.log()
    seen = str(log[-2].id)
    for query, headers in (
        (f"?format={form}", {"Last-Event-ID": seen}),
        (f"?format={form}&after={seen}", {}),
        (f"?format={form}&after={log[0].id}", {"Last-Event-ID": seen}),
        (f"?format={form}&after=now", {"Last-Event-ID": seen}),
    ):
        frames = await _frames(served, author.job_id, query, **headers)
        assert [frame.event for frame in frames] == ["succeeded"]


async def test_a_client_that_has_seen_the_end_gets_204(served: Served) -> None:
    """After which a browser does not come back."""
    author = await _ended(served)
    end = str((await author.log())[-1].id)
    for query, headers in (("", {"Last-Event-ID": end}), (f"?after={end}", {})):
        async with asking(served.url, f"/v1/jobs/{author.job_id}/events{query}", headers=headers) as answer:
            assert answer.status == 204
            assert await answer.read() == b""


@pytest.mark.parametrize("cursor", _BAD_CURSORS)
async def test_a_cursor_that_cannot_be_ours_is_400(api: CalledApi, cursor: str) -> None:
    """In the header and in the query."""
    job = await api.submitted()
    path = f"/v1/jobs/{job['id']}/events"
    problem_of(await api.http.get(path, params={"after": cursor}), 400, "invalid_cursor")
    in_header: Any = [(b"Last-Event-ID", cursor.encode())]
    problem_of(await api.http.get(path, headers=in_header), 400, "invalid_cursor")


async def test_an_unknown_format_is_400(api: CalledApi) -> None:
    """Also where a submit follows."""
    job = await api.submitted()
    assert pointers_of(await api.http.get(f"/v1/jobs/{job['id']}/events?format=xml")) == ["format"]
    count = await api.keys_count()
    response = await api.http.post("/v1/jobs?format=xml", json={"prompt": "x"}, headers={"Accept": "text/event-stream"})
    assert pointers_of(response) == ["format"]
    assert await api.keys_count() == count


async def test_accept_that_rules_events_out_is_406(api: CalledApi) -> None:
    """A program that wants JSON wants another address."""
    job = await api.submitted()
    response = await api.http.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "application/json"})
    problem_of(response, 406, "not_acceptable")


async def test_head_of_a_stream_answers_its_headers_and_ends(served: Served) -> None:
    """Although the job has not ended."""
    author = await Author.start(served.api.runtime)
    async with asking(served.url, f"/v1/jobs/{author.job_id}/events", method="HEAD") as answer:
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
    assert served.relay.follower_count == 0
