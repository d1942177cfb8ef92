"""The example of a chat in a real browser: it follows from another origin, and survives what a chat has to survive."""

import json
import secrets
from collections.abc import AsyncIterator

import pytest

from tests.examples.conftest import CHAT_PORT
from tests.examples.example import an_example, read_until
from tests.support.browser import CHROMIUM, Page, a_page
from tests.support.deployment import Deployment
from tests.support.wait import wait_until

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt-get install chromium)"),
]


@pytest.fixture
async def chat(deployment: Deployment) -> AsyncIterator[str]:
    """The URL of the chat's own server."""
    async with an_example("chat.py", str(CHAT_PORT), TOKENSPOOL_URL=deployment.apis[0].url) as server:
        yield (await read_until(server, "\n")).split()[1].removesuffix("/acme/ann")


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A browser's tab."""
    async with a_page() as page:
        yield page


def _words(nonce: str, count: int, attempt: int = 1) -> str:
    return "".join(f"{nonce}.{attempt}.{index} " for index in range(count))


async def _open(page: Page, url: str) -> None:
    await page.open(url)

    async def is_there() -> bool:
        return await page.run("document.readyState === 'complete' && typeof show === 'function'") is True

    await wait_until(is_there, "the page", timeout_s=20)


async def _ask(page: Page, question: str) -> None:
    await page.run(f"document.querySelector('input').value = {json.dumps(question)}")
    await page.run("document.querySelector('button').click()")


async def _shows(page: Page, part: str, text: str) -> None:
    async def does() -> bool:
        return text in await page.text(f".{part}:nth-last-of-type({2 if part == 'answer' else 1})")

    await wait_until(does, f"{text!r} on the page", timeout_s=30)


async def _answer(page: Page) -> str:
    return await page.text(".answer:nth-last-of-type(2)")


async def test_a_reload_in_the_middle_loses_nothing(page: Page, chat: str, deployment: Deployment) -> None:
    """The page sends its turn again with the same key: the answer is followed from its beginning, and the LLM is called
    once. The next turn has the history with it.
    """
    nonce = f"chat-{secrets.token_hex(3)}"
    await _open(page, f"{chat}/acme/ann")
    await _ask(page, f"nonce={nonce} tokens=80 gap-ms=30")
    await _shows(page, "answer", f"{nonce}.1.5 ")
    await page.run("window.beforeTheReload = true")
    await page.call("Page.reload")

    async def reloaded() -> bool:
        return await page.run("document.readyState === 'complete' && !window.beforeTheReload") is True

    await wait_until(reloaded, "the reload", timeout_s=20)
    await _shows(page, "state", "succeeded")
    assert await _answer(page) == _words(nonce, 80)
    assert [call.ended for call in await deployment.calls(nonce)] == ["completed"]
    await _ask(page, f"nonce={nonce}-2 tokens=30 gap-ms=30")
    assert await page.run("turns[1].messages.map((message) => message.role).join()") == "user,assistant,user"
    await _shows(page, "state", "succeeded")
    assert await _answer(page) == _words(f"{nonce}-2", 30)
    assert await page.run("turns.some((turn) => turn.messages)") is False


async def test_a_second_attempt_starts_with_an_empty_text(page: Page, chat: str) -> None:
    """The page obeys ``reset`` and clears the first attempt's text."""
    nonce = f"again-{secrets.token_hex(3)}"
    await _open(page, f"{chat}/acme/ann")
    await _ask(page, f"nonce={nonce} tokens=20 gap-ms=20 end=10x1")
    await _shows(page, "state", "succeeded")
    assert await _answer(page) == _words(nonce, 20, attempt=2)


async def test_the_page_goes_on_after_the_api_has_restarted(page: Page, chat: str, deployment: Deployment) -> None:
    """No token is doubled or lost, and the page has no code for it."""
    nonce = f"restart-{secrets.token_hex(3)}"
    await _open(page, f"{chat}/acme/ann")
    await _ask(page, f"nonce={nonce} tokens=100 gap-ms=30")
    await _shows(page, "answer", f"{nonce}.1.5 ")
    api = deployment.apis[0]
    port = int(api.url.rpartition(":")[2])
    api.kill()
    deployment.apis.remove(api)
    await deployment.api_up(deployment.begin_api(port=port))
    await _shows(page, "state", "succeeded")
    assert await _answer(page) == _words(nonce, 100)
    assert [call.ended for call in await deployment.calls(nonce)] == ["completed"]


async def test_a_token_that_ends_is_replaced(page: Page, chat: str, deployment: Deployment) -> None:
    """The page does not know why its EventSource was closed, and finds its turn again."""
    nonce = f"token-{secrets.token_hex(3)}"
    await _open(page, f"{chat}/acme/ann")
    # As if its token had expired: the first EventSource has a URL that is refused.
    await page.run("""
        window.opened = 0;
        const Own = EventSource;
        window.EventSource = class extends Own {
            constructor(url) { super(opened++ ? url : url + "x") }
        };
        null""")
    await _ask(page, f"nonce={nonce} tokens=5 gap-ms=0")
    await _shows(page, "state", "succeeded")
    assert await _answer(page) == _words(nonce, 5)
    assert await page.run("opened") == 2
    assert [call.ended for call in await deployment.calls(nonce)] == ["completed"]


async def test_the_user_stops_an_answer(page: Page, chat: str, deployment: Deployment) -> None:
    """By the follow token; the text so far stays on the page."""
    nonce = f"stop-{secrets.token_hex(3)}"
    await _open(page, f"{chat}/acme/ann")
    await _ask(page, f"nonce={nonce} tokens=500 gap-ms=30")
    await _shows(page, "answer", f"{nonce}.1.5 ")
    await page.run("document.getElementById('stop').click()")
    await _shows(page, "state", "cancelled")
    assert f"{nonce}.1.5 " in await _answer(page)


async def test_a_user_who_has_spent_a_budget_does_not_stop_another(
    page: Page, chat: str, deployment: Deployment
) -> None:
    """Each user of a tenant has one of its own."""
    async with deployment.runtime() as runtime:
        await runtime.tenants.set("acme", {"end_user_nano_usd_per_day": 1000})
    try:
        await _spend(page, f"{chat}/acme/eve")
        await _open(page, f"{chat}/acme/ann")
        await _ask(page, "tokens=5 gap-ms=0")
        await _shows(page, "state", "succeeded")
    finally:
        async with deployment.runtime() as runtime:
            await runtime.tenants.clear("acme")


async def test_a_spent_budget_is_shown_to_its_tenant_alone(page: Page, chat: str, deployment: Deployment) -> None:
    """The page says why and until when; the other tenant's chat goes on."""
    async with deployment.runtime() as runtime:
        await runtime.tenants.set("globex", {"nano_usd_per_day": 1000})
    await _spend(page, f"{chat}/globex/bob")
    nonce = f"other-{secrets.token_hex(3)}"
    await _open(page, f"{chat}/acme/ann")
    await _ask(page, f"nonce={nonce} tokens=5 gap-ms=0")
    await _shows(page, "state", "succeeded")
    assert await _answer(page) == _words(nonce, 5)


async def _spend(page: Page, url: str) -> None:
    """Asks until a budget refuses it."""
    await _open(page, url)
    await _ask(page, "tokens=50 gap-ms=0")
    await _shows(page, "state", "succeeded")

    async def has_ended() -> bool:
        return await page.run("turns.every((turn) => !turn.messages)") is True

    async def is_refused() -> bool:
        await _ask(page, "tokens=5 gap-ms=0")
        await wait_until(has_ended, "the end of the turn")
        return "budget" in (await page.text(".state:nth-last-of-type(1)")).lower()

    await wait_until(is_refused, "the budget's 429", timeout_s=20)
