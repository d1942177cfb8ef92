"""Redis drops connections and messages: a follower notices only a delay."""

import asyncio

import pytest

from shared.store import redis_keys
from shared.store.runtime import Runtime
from tests.stream.conftest import Follow, Serve
from tests.support.author import Author
from tests.support.faults import every_pubsub_connection_cut, pubsub_connections
from tests.support.follower import Follower, following
from tests.support.served import Served
from tests.support.story import assert_saw
from tests.support.wait import wait_until

_CUT_EVERY_S = 0.1
_WRITE_EVERY_S = 0.01


async def _writing(author: Author, stop: asyncio.Event) -> None:
    number = 0
    while not stop.is_set():
        await author.say(f"{number} ", f"{number + 1} ")
        number += 2
        if number % 50 == 0:
            await author.try_again(number)
        await asyncio.sleep(_WRITE_EVERY_S)
    await author.succeed()


async def test_no_event_is_lost_while_the_subscription_is_cut_every_tenth_of_a_second(
    runtime: Runtime, served: Served, follower_of: Follow
) -> None:
    """Twenty jobs stream; each has a follower that stays connected, in one of the formats."""
    authors = [await Author.start(runtime) for _ in range(20)]
    followers = [
        follower_of(author.job_id, form=("text", "messages")[number % 2]) for number, author in enumerate(authors)
    ]
    tasks = [await following(follower) for follower in followers]
    stop = asyncio.Event()
    writing = [asyncio.create_task(_writing(author, stop)) for author in authors]
    cuts = 0
    for _ in range(20):
        await asyncio.sleep(_CUT_EVERY_S)
        cuts += await every_pubsub_connection_cut(runtime)
    stop.set()
    await asyncio.gather(*writing)
    assert cuts >= 10
    for author, follower, task in zip(authors, followers, tasks, strict=True):
        await task
        assert_saw(follower, await author.log())
        assert len(follower.connections) == 1
    last = await Author.start(runtime)
    task = await following(follower_of(last.job_id))
    assert len(await pubsub_connections(runtime)) == 1
    await last.succeed()
    await task


async def test_a_lost_last_message_is_found_by_the_probe(
    serve: Serve, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is open and no message follows; still the follower sees the end within the idle probe's time."""
    served = await serve(sse_idle_probe_s=0.3)
    follower = Follower([served.url], author.job_id)
    task = await following(follower)
    await author.say("Blue")
    await wait_until(lambda: follower.text == "Blue", "the text")
    monkeypatch.setattr(served.relay._subscriber, "_on_message", lambda *_: None)
    await author.say(" light")
    await author.succeed()
    ended_s = asyncio.get_running_loop().time()
    await task
    assert_saw(follower, await author.log())
    assert follower.at_s[follower.ids[-1]] - ended_s < 3 * (0.3 + 0.1)


async def test_a_lost_message_is_filled_in_from_the_log(
    served: Served, author: Author, follower_of: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third message is dropped: the next one shows the gap, which is filled at once, not at the probe."""
    follower = follower_of(author.job_id)
    task = await following(follower)
    deliver = served.relay._on_message
    heard = 0

    def drop_some(channel: str, message: bytes) -> None:
        nonlocal heard
        heard += 1
        if heard % 3:
            deliver(channel, message)

    monkeypatch.setattr(served.relay._subscriber, "_on_message", drop_some)
    for number in range(30):
        await author.say(f"{number} ")
        await wait_until(lambda n=number: heard > n, "the message")  # type: ignore[misc]
        if heard % 3:
            await wait_until(lambda n=number: f"{n} " in follower.text, f"word {number}", timeout_s=1)  # type: ignore[misc]
    monkeypatch.undo()
    await author.succeed()
    await task
    assert_saw(follower, await author.log())


async def test_messages_that_come_twice_or_late_are_shown_once(
    served: Served, author: Author, follower_of: Follow
) -> None:
    """Repeated messages add nothing."""
    follower = follower_of(author.job_id)
    task = await following(follower)
    for number in range(5):
        await author.say(f"{number} ")
    for event in await author.log():
        message = b"\n".join((str(event.id).encode(), event.name.encode(), event.data))
        await author.runtime._commands.call("PUBLISH", redis_keys.events(author.job_id), message)
    await author.say("end")
    await author.succeed()
    await task
    assert_saw(follower, await author.log())


@pytest.mark.parametrize("rubbish", [b"", b"mark", b"1-1\nname", b"\xff-1\nname\n{}", b"1-1\n\xff\n{}", b"1-x\na\n{}"])
async def test_garbage_on_the_channel_harms_nobody(
    served: Served, author: Author, follower_of: Follow, rubbish: bytes
) -> None:
    """Whatever somebody else publishes there, the subscription of all followers survives."""
    follower = follower_of(author.job_id)
    task = await following(follower)
    await author.say("Blue")
    await author.runtime._commands.call("PUBLISH", redis_keys.events(author.job_id), rubbish)
    await author.say(" light")
    await wait_until(lambda: follower.text == "Blue light", "live text", timeout_s=1)
    assert len(await pubsub_connections(author.runtime)) == 1
    await author.succeed()
    await task
    assert_saw(follower, await author.log())


async def test_a_follower_that_comes_while_pubsub_is_away_is_served_from_the_log(
    serve: Serve, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for the confirmation is bounded; the log is shown, and events appended meanwhile are not lost."""
    served = await serve(sse_idle_probe_s=0.3)
    monkeypatch.setattr(served.relay._subscriber, "subscribe", lambda _: None)
    await author.say("Blue")
    follower = Follower([served.url], author.job_id)
    task = await following(follower)
    await author.say(" light")
    await author.succeed()
    await task
    assert_saw(follower, await author.log())


async def test_after_a_late_confirmation_missed_events_are_shown(
    serve: Serve, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subscription begins only after the log was read; events appended between the two are shown at once."""
    served = await serve(sse_idle_probe_s=10)
    relay = served.relay
    await author.say("Blue")
    confirm = relay._subscriber._on_confirmed
    monkeypatch.setattr(relay._subscriber, "_on_confirmed", lambda _: None)
    monkeypatch.setattr(relay._subscriber, "_on_message", lambda *_: None)
    follower = Follower([served.url], author.job_id)
    task = await following(follower)
    await author.say(" light")
    monkeypatch.undo()
    confirm(redis_keys.events(author.job_id))
    await wait_until(lambda: follower.text == "Blue light", "what was missed", timeout_s=2)
    await author.succeed()
    await task
    assert_saw(follower, await author.log())
