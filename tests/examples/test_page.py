"""The example page in a real browser: it shows tokens as they come, and survives a reload and a lost API."""

import json
import secrets
from collections.abc import AsyncIterator

import pytest

from tests.examples.example import an_example, read_until
from tests.support.browser import CHROMIUM, Page, a_page
from tests.support.deployment import Deployment
from tests.support.wait import wait_until

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt-get install chromium)"),
]


@pytest.fixture
async def page_url(deployment: Deployment) -> AsyncIterator[str]:
    """The URL of the example's own server."""
    async with an_example("serve_page.py", "0", TOKENSPOOL_URL=deployment.apis[0].url) as server:
        yield (await read_until(server, "\n")).split()[1]


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A browser's tab."""
    async with a_page() as page:
        yield page


async def _ask(page: Page, url: str, prompt: str) -> None:
    await page.open(url)

    async def is_there() -> bool:
        return bool(await page.run("document.readyState === 'complete' && !!document.querySelector('form')"))

    await wait_until(is_there, "the page", timeout_s=20)
    await page.run(f"document.querySelector('input').value = {json.dumps(prompt)}")
    await page.run("document.querySelector('button').click()")


async def _shows(page: Page, selector: str, text: str) -> None:
    async def does() -> bool:
        return text in await page.text(selector)

    await wait_until(does, f"{text!r} on the page", timeout_s=30)


async def test_a_reload_in_the_middle_loses_nothing(page: Page, page_url: str, deployment: Deployment) -> None:
    """The job's id is in the URL; the answer is followed from its beginning, and the LLM is called only once."""
    nonce = f"page-{secrets.token_hex(3)}"
    await _ask(page, page_url, f"nonce={nonce} tokens=80 gap-ms=30")
    await _shows(page, "#answer", f"{nonce}.1.5 ")
    assert (await page.run("location.hash")).startswith("#job_")
    await page.run("window.beforeTheReload = true")
    await page.call("Page.reload")

    async def reloaded() -> bool:
        return await page.run("document.readyState === 'complete' && !window.beforeTheReload") is True

    await wait_until(reloaded, "the reload", timeout_s=20)
    await _shows(page, "#state", "The answer has succeeded.")
    assert await page.text("#answer") == "".join(f"{nonce}.1.{index} " for index in range(80))
    assert [call.ended for call in await deployment.calls(nonce)] == ["completed"]


async def test_a_second_attempt_starts_with_an_empty_text(page: Page, page_url: str) -> None:
    """The page obeys ``reset`` and clears the first attempt's text."""
    nonce = f"again-{secrets.token_hex(3)}"
    await _ask(page, page_url, f"nonce={nonce} tokens=20 gap-ms=20 end=10x1")
    await _shows(page, "#state", "The answer has succeeded.")
    assert await page.text("#answer") == "".join(f"{nonce}.2.{index} " for index in range(20))


async def test_the_page_reconnects_to_an_api_that_restarts(page: Page, page_url: str, deployment: Deployment) -> None:
    """With the last event's id: no token is doubled or lost."""
    nonce = f"restart-{secrets.token_hex(3)}"
    await _ask(page, page_url, f"nonce={nonce} tokens=100 gap-ms=30")
    await _shows(page, "#answer", f"{nonce}.1.5 ")
    api = deployment.apis[0]
    port = int(api.url.rpartition(":")[2])
    api.kill()
    await _shows(page, "#state", "reconnecting")
    deployment.apis.remove(api)
    await deployment.api_up(deployment.begin_api(port=port))
    await _shows(page, "#state", "The answer has succeeded.")
    assert await page.text("#answer") == "".join(f"{nonce}.1.{index} " for index in range(100))


async def test_a_missing_answer_is_reported(page: Page, page_url: str) -> None:
    """With a sentence, instead of an empty page."""
    await page.open(f"{page_url}/#job_00000000000000000000000000")
    await _shows(page, "#state", "The answer was not found")
