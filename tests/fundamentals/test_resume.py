"""Come back after a lost connection: any event id is a place to resume from."""

import json

import pytest

from tests.stream.conftest import Follow
from tests.support.author import Author
from tests.support.story import assert_saw


@pytest.mark.parametrize("form", ["text", "messages"])
@pytest.mark.parametrize("has_ended", [False, True])
async def test_a_follower_can_resume_after_every_event_id(
    author: Author, follower_of: Follow, form: str, has_ended: bool
) -> None:
    """Also after events that its format does not show. After the last event it gets 204."""
    await author.open()
    await author.say("Blue", " light")
    await author.say(" is scattered")
    if has_ended:
        await author.succeed()
    log = await author.log()
    followers = [follower_of(author.job_id, form=form, last_event_id=str(event.id)) for event in log]
    if has_ended:
        *followers, at_the_end = followers
        assert (await at_the_end.follow_once()).status == 204
    else:
        await author.succeed()
        log = await author.log()
    for follower in followers:
        asked = follower.last_event_id
        await follower.follow()
        assert_saw(follower, log, after=asked)


@pytest.mark.parametrize("form", ["text", "messages"])
async def test_a_late_follower_of_an_ended_job_sees_every_event(author: Author, follower_of: Follow, form: str) -> None:
    """The same events as live; the last one carries the ended job with its result."""
    await author.open()
    await author.say("Blue", " light")
    await author.say(" is scattered")
    await author.succeed()
    follower = await follower_of(author.job_id, form=form).follow()
    assert_saw(follower, await author.log())
    ended = json.loads(follower.frames[-1].data)
    assert (ended["id"], ended["status"], ended["result"]["text"]) == (
        author.job_id,
        "succeeded",
        "Blue light is scattered",
    )
