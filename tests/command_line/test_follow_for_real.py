"""`submit` and `follow` with the real API, a real worker and the simulator, over a network that is cut repeatedly."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from math import inf

import pytest
from structlog.testing import capture_logs

from cli.terminal import one_line
from shared.settings import load_settings
from shared.store import redis_keys
from shared.store.runtime import open_runtime
from simulator.app import Simulator
from simulator.app import running as running_simulator
from tests.command_line.conftest import Outcome, Patience, Tokenspool
from tests.running.crew import Crew
from tests.support.follower import ask
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving
from tests.support.wait import wait_until

_FAST = "sim-t40-g1-f1"
_ENDLESS = "sim-t100000-g5-f1"


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """Silences the API and the worker, which run in this process, so that only the command's output is seen."""
    with capture_logs():
        yield


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with running_simulator() as simulator:
        yield simulator


@pytest.fixture
async def crew(simulator: Simulator, real_redis: RedisUnderTest) -> AsyncIterator[Crew]:
    """A queue without workers."""
    settings = load_settings(redis_url=real_redis.url)
    async with open_runtime(settings, process_name="tests", timeout_s=10) as runtime, AsyncExitStack() as stack:
        yield Crew(runtime, simulator, stack)


@pytest.fixture
async def served(real_redis: RedisUnderTest) -> AsyncIterator[Served]:
    async with serving(real_redis.url) as served:
        yield served


@pytest.fixture
def url(served: Served) -> str:
    return served.url


@asynccontextmanager
async def _gateway(url_of: Callable[[], str], bytes_of: Callable[[], float] = lambda: inf) -> AsyncIterator[str]:
    """A proxy. Each connection goes to the current ``url_of()``, and is cut after ``bytes_of()`` bytes of responses."""
    serving_tasks = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving_tasks.add(task)
        host, port = url_of().removeprefix("http://").split(":")
        answer, request = await asyncio.open_connection(host, int(port))
        asking = asyncio.create_task(_forward(reader, request, inf))
        try:
            await _forward(answer, writer, bytes_of())
        finally:
            asking.cancel()
            await asyncio.wait([asking])
            request.transport.abort()
            writer.close()  # FIN: a reset would also discard bytes on their way

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for task in serving_tasks:
        task.cancel()
    await asyncio.gather(*serving_tasks, return_exceptions=True)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most_bytes: float) -> None:
    left = most_bytes
    with suppress(OSError):
        while left > 0 and (piece := await reader.read(int(min(left, 4096)))):
            writer.write(piece)
            await writer.drain()
            left -= len(piece)


async def _run(tokenspool: Tokenspool, *arguments: str) -> Outcome:
    """Runs the command in a thread, because its API runs in this loop."""
    return await asyncio.to_thread(tokenspool, *arguments)


async def _submit(tokenspool: Tokenspool, url: str, prompt: str, model: str = _FAST) -> str:
    outcome = await _run(tokenspool, "submit", prompt, "--model", model, "--url", url)
    assert (outcome.exit_code, outcome.err) == (0, "")
    return outcome.out.strip()


def _answer(nonce: str, tokens: int = 40) -> str:
    return "".join(f"{nonce}.1.{index} " for index in range(tokens))


async def test_submit_follow_prints_the_whole_answer(crew: Crew, url: str, tokenspool: Tokenspool) -> None:
    """From the submit to the last token."""
    await crew.worker()
    outcome = await _run(tokenspool, "submit", "nonce=whole", "--model", _FAST, "--follow", "--url", url)
    assert (outcome.exit_code, outcome.out) == (0, _answer("whole") + "\n")


@pytest.mark.parametrize("seed", range(3))
async def test_an_answer_that_is_cut_often_and_anywhere_is_printed_once(
    crew: Crew, url: str, tokenspool: Tokenspool, patience: Patience, seed: int
) -> None:
    """Inside heads, chunks, frames and ids, while the answer is written."""
    await crew.worker()
    job_id = await _submit(tokenspool, url, "nonce=cut", "sim-t40-g5-f1")
    places = random.Random(seed)
    certain = [10, 300]  # so that it is cut even if a busy machine sends few pieces

    def bytes_of() -> int:
        return certain.pop() if certain else places.choice((10, places.randint(200, 1200), places.randint(200, 5000)))

    async with _gateway(lambda: url, bytes_of) as way:
        outcome = await _run(tokenspool, "follow", job_id, "--url", way)
    assert (outcome.exit_code, outcome.out) == (0, _answer("cut") + "\n")
    assert len(patience.pauses_s) >= 2


async def test_an_ended_job_is_printed_from_its_log_and_later_from_its_result(
    crew: Crew, url: str, tokenspool: Tokenspool
) -> None:
    """An hour later the log is deleted, but the text is still there."""
    await crew.worker()
    job_id = await _submit(tokenspool, url, "nonce=late")
    first = await _run(tokenspool, "follow", job_id, "--url", url)
    again = await _run(tokenspool, "follow", job_id, "--url", url)
    assert (again.exit_code, again.out, again.err) == (0, _answer("late") + "\n", "")
    assert again.out == first.out
    assert await crew.runtime._commands.call("DEL", redis_keys.log(job_id)) == 1
    without_log = await _run(tokenspool, "follow", job_id, "--url", url)
    assert (without_log.exit_code, without_log.out, without_log.err) == (0, _answer("late") + "\n", "")


async def test_a_failed_attempt_is_printed_before_the_successful_one(
    crew: Crew, url: str, tokenspool: Tokenspool
) -> None:
    """The text starts again on a new line."""
    await crew.worker()
    job_id = await _submit(tokenspool, url, "nonce=again fin=5x1")
    outcome = await _run(tokenspool, "follow", job_id, "--url", url)
    assert outcome.exit_code == 0
    assert outcome.out.splitlines()[-1] == _answer("again").replace(".1.", ".2.")
    assert outcome.err.splitlines()[-1].startswith("tokenspool: the text starts over (")


@pytest.mark.parametrize(
    ("fault", "code"), [("fail=401", "upstream_auth"), ("fail=400,message=no", "upstream_rejected")]
)
async def test_a_job_that_failed_is_one_sentence(
    crew: Crew, url: str, tokenspool: Tokenspool, fault: str, code: str
) -> None:
    """With the documented code."""
    await crew.worker()
    job_id = await _submit(tokenspool, url, fault)
    outcome = await _run(tokenspool, "follow", job_id, "--url", url)
    assert outcome.exit_code == 1
    assert outcome.sentence.startswith("The job failed: ")
    assert outcome.sentence.endswith(f"({code})")


async def test_a_job_that_is_cancelled_meanwhile_is_reported(crew: Crew, url: str, tokenspool: Tokenspool) -> None:
    """In the middle of its answer."""
    await crew.worker()
    job_id = await _submit(tokenspool, url, "nonce=endless", _ENDLESS)
    following = asyncio.create_task(_run(tokenspool, "follow", job_id, "--url", url))
    await crew.begun(job_id, tokens=20)
    status, _, _ = await ask(url, f"/v1/jobs/{job_id}/cancel", method="POST")
    assert status == 200
    outcome = await following
    assert (outcome.exit_code, outcome.err) == (1, "tokenspool: The job was cancelled.\n")


async def test_a_job_that_expired_is_reported(crew: Crew, url: str, tokenspool: Tokenspool) -> None:
    """No worker ran."""
    _, job, _ = await ask(url, "/v1/jobs", method="POST", body={"prompt": "Why?", "job": {"expires_in_s": 1}})
    outcome = await _run(tokenspool, "follow", job["id"], "--url", url)
    assert outcome.exit_code == 1
    assert outcome.err.splitlines()[-1] == "tokenspool: The job expired before it started."


@pytest.mark.parametrize("job_id", ["job_01m84bdq4t7w9k2p5x8r3n6v0c", "nonsense", "../jobs", "é\x00"])
async def test_an_unknown_job_is_one_sentence(url: str, tokenspool: Tokenspool, job_id: str) -> None:
    """Whatever the user typed."""
    outcome = await _run(tokenspool, "follow", job_id, "--url", url)
    assert outcome.exit_code == 1
    assert outcome.sentence == f"No job {one_line(job_id)} at {url}."


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("",), "prompt"),
        (("Why?", "--model", "m" * 300), "model"),
        (("Why?", "--max-tokens", "99999999999999999999"), "max_tokens"),
    ],
)
async def test_an_invalid_submit_names_the_field(
    url: str, tokenspool: Tokenspool, arguments: tuple[str, ...], names: str
) -> None:
    """It stores nothing."""
    outcome = await _run(tokenspool, "submit", *arguments, "--url", url)
    assert outcome.exit_code == 1
    assert f"#/{names}: " in outcome.sentence
    _, jobs, _ = await ask(url, "/v1/jobs")
    assert jobs["data"] == []


async def test_a_full_queue_is_reported(real_redis: RedisUnderTest, tokenspool: Tokenspool) -> None:
    """In the API's own words."""
    async with serving(real_redis.url, max_queued=1) as served:
        await _submit(tokenspool, served.url, "Why?")
        outcome = await _run(tokenspool, "submit", "Why?", "--url", served.url)
    assert (outcome.exit_code, outcome.sentence) == (1, "The queue is full.")


async def test_an_api_without_its_redis_is_reported(tokenspool: Tokenspool) -> None:
    """At once, and not as a wrong command."""
    async with serving("redis://127.0.0.1:1/0") as served:
        outcome = await _run(tokenspool, "submit", "Why?", "--url", served.url)
    assert (outcome.exit_code, outcome.sentence) == (1, "The storage does not reply.")


async def test_it_follows_across_a_restart_of_the_api(
    crew: Crew, real_redis: RedisUnderTest, tokenspool: Tokenspool, patience: Patience
) -> None:
    """The new API has the same address, as behind a load balancer; the old one ends its stream with a comment."""
    now = ""
    async with AsyncExitStack() as first_api, serving(real_redis.url) as second, _gateway(lambda: now) as url:
        first = await first_api.enter_async_context(serving(real_redis.url))
        now = first.url
        await crew.worker()
        job_id = await _submit(tokenspool, url, "nonce=across", "sim-t60-g10-f1")
        following = asyncio.create_task(_run(tokenspool, "follow", job_id, "--url", url))
        await crew.begun(job_id, tokens=5)
        await wait_until(lambda: first.relay.follower_count == 1, "the follower")
        now = second.url
        await first_api.aclose()
        outcome = await following
    assert (outcome.exit_code, outcome.out) == (0, _answer("across", 60) + "\n")
    assert set(outcome.err.splitlines()) == {"tokenspool: the connection broke; reconnecting"}
