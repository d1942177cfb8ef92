"""A follow token in a real browser: a plain EventSource on a page of another origin."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from aiohttp import web

from shared.job import JobState
from tests.keys.conftest import TENANT, Serve, bearer, make_key
from tests.support.author import Author
from tests.support.browser import CHROMIUM, Page, a_page
from tests.support.served import Served
from tests.support.wait import wait_until

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt-get install chromium)"),
]

_FOLLOW = """
window.text = ""; window.seen = []; window.opened = 0;
window.source = new EventSource(URL);
source.onopen = () => { opened += 1 };
for (const name of ["queued", "started", "reset", "succeeded", "cancelled"])
  source.addEventListener(name, (event) => { seen.push(name) });
source.addEventListener("delta", (event) => { text += JSON.parse(event.data).text });
"""
_CLOSED = 2


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A browser's tab."""
    async with a_page() as page:
        yield page


@asynccontextmanager
async def _an_origin() -> AsyncIterator[str]:
    """Another web server, with an empty page."""
    app = web.Application()

    async def empty(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>another origin</title>", content_type="text/html")

    app.router.add_get("/", empty)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def _opened(page: Page, origin: str) -> None:
    await page.open(origin)

    async def is_there() -> bool:
        return bool(await page.run("document.title") == "another origin")

    await wait_until(is_there, "the page", timeout_s=20)


async def _follow(page: Page, url: str) -> None:
    await page.run(_FOLLOW.replace("URL", json.dumps(url)) + "null")


async def _comes(page: Page, script: str) -> None:
    async def has_come() -> bool:
        return await page.run(script) is True

    await wait_until(has_come, script, timeout_s=20)


async def _is_refused(page: Page, url: str) -> None:
    """The EventSource gives up, and has seen nothing."""
    await _follow(page, url)
    await _comes(page, f"source.readyState === {_CLOSED}")
    assert await page.run("opened + seen.length + text.length") == 0


async def _url(served: Served, author: Author, key: str, **body: object) -> str:
    async with httpx2.AsyncClient(base_url=served.url, headers=bearer(key)) as http:
        response = await http.post(f"/v1/jobs/{author.job_id}/follow-token", json=body)
    assert response.status_code == 201
    return f"{served.url}{response.json()['url']}"


@pytest.mark.parametrize("auth", ["keys", "off"])
async def test_an_event_source_follows_across_a_broken_connection(page: Page, serve: Serve, auth: str) -> None:
    """It reconnects by itself with its last id, doubles nothing, and stops after the end."""
    async with _an_origin() as origin:
        served = await serve(auth=auth, cors_origins=origin)
        author = await Author.start(served.api.runtime, tenant=TENANT if auth == "keys" else "default")
        url = await _url(served, author, (await make_key(served.api.runtime)).text)
        await _opened(page, origin)
        await _follow(page, url)
        await author.say("The ", "sky ")
        await _comes(page, "text === 'The sky '")
        for connection in list(served.server.server_state.connections):
            connection.transport.abort()
        await author.say("is ")
        await _comes(page, "opened === 2 && text === 'The sky is '")
        await author.say("blue.")
        await author.succeed()
        await _comes(page, f"source.readyState === {_CLOSED}")
        assert await page.run("text") == "The sky is blue."
        assert await page.run("seen.join()") == "started,succeeded"


async def test_what_is_refused_is_not_tried_again(page: Page, serve: Serve) -> None:
    """A token of another job, an expired one, one whose key is revoked; and a page of an origin that may not call."""
    async with _an_origin() as origin, _an_origin() as stranger:
        served = await serve(cors_origins=origin)
        runtime = served.api.runtime
        author, other = [await Author.start(runtime, tenant=TENANT) for _ in range(2)]
        key, lost = await make_key(runtime), await make_key(runtime)
        url = await _url(served, author, key.text)
        of_lost = await _url(served, author, lost.text)
        short = await _url(served, author, key.text, expires_in_s=1)
        await author.say("Hello")
        await _opened(page, origin)
        await _is_refused(page, url.replace(author.job_id, other.job_id))
        await runtime.api_keys.revoke(lost.key.id, TENANT)
        await _is_refused(page, of_lost)
        await asyncio.sleep(1.1)
        await _is_refused(page, short)
        await _follow(page, url)  # or the refusals would prove nothing
        await _comes(page, "text === 'Hello'")
        await _opened(page, stranger)
        await _is_refused(page, url)


async def test_a_page_cancels_if_its_token_allows_it(page: Page, serve: Serve) -> None:
    """With a plain POST that needs no preflight."""
    async with _an_origin() as origin:
        served = await serve(cors_origins=origin)
        runtime = served.api.runtime
        author = await Author.start(runtime, tenant=TENANT)
        url = await _url(served, author, (await make_key(runtime)).text, cancel=True)
        await _opened(page, origin)
        await _follow(page, url)
        cancel = json.dumps(url.replace("/events", "/cancel"))
        await page.run(f"fetch({cancel}, {{method: 'POST'}}).then((response) => {{ window.status = response.status }})")
        await _comes(page, "seen.at(-1) === 'cancelled' && window.status == 200")
        assert (await runtime.jobs.get(author.job_id, TENANT)).state is JobState.CANCELLED
