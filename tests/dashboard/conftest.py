"""The page in a real browser, against a real API, worker, simulator and Redis."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import pytest
import uvloop
from _pytest.terminal import TerminalReporter

from simulator.app import running
from tests.routes.conftest import CalledApi, StartApi, called_api
from tests.support.browser import Page, a_page
from tests.support.facts import fact, print_facts
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving
from tests.support.wait import wait_until
from tests.support.working import working

__all__ = ["fact"]

MODEL = "sim-t40-g20-f20"


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Prints the figures after the results."""
    print_facts(terminalreporter, "tests/dashboard")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of `tokenspool serve`."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def start_api(real_redis: RedisUnderTest) -> AsyncIterator[StartApi]:
    """For tests that need other settings."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> CalledApi:
            return await stack.enter_async_context(called_api(**{"redis_url": real_redis.url, **settings}))

        yield start


@pytest.fixture
async def api(start_api: StartApi) -> CalledApi:
    """An API with the default settings."""
    return await start_api()


class Serve(Protocol):
    """Starts an API and a worker with these settings; both stop after the test."""

    async def __call__(self, **settings: Any) -> Served: ...


@pytest.fixture
async def serve(real_redis: RedisUnderTest) -> AsyncIterator[Serve]:
    """For tests that need other settings."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Served:
            simulator = await stack.enter_async_context(running())
            served = await stack.enter_async_context(serving(real_redis.url, model=MODEL, **settings))
            await stack.enter_async_context(working(real_redis.url, simulator.url, model=MODEL))
            return served

        yield start


class Tab:
    """A tab of a browser, with everything that it complained of or asked others for."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url

    async def open(self, place: str) -> None:
        """Opens a page of the dashboard by the part after #/."""
        await self.page.open("about:blank")
        await self.page.open(f"{self.url}/#/{place}")

    async def shows(self, text: str) -> None:
        """Waits until the text is on the page."""

        async def is_there() -> bool:
            return text in str(await self.page.run("document.body.innerText"))

        await wait_until(is_there, f"the text {text!r}", timeout_s=30)

    async def press(self, name: str) -> None:
        """Presses the button whose text begins so, once it can be pressed."""
        found = (
            f"[...document.querySelectorAll('button')].find(b => b.textContent.trim().startsWith({json.dumps(name)}))"
        )

        async def pressed() -> bool:
            return bool(await self.page.run(f"(b => b && !b.disabled ? (b.click(), true) : false)({found})"))

        await wait_until(pressed, f"the button {name!r}", timeout_s=30)

    async def fill(self, selector: str, value: str) -> None:
        """Types into a field."""
        script = (
            "((field, value) => { field.value = value;"
            " for (const name of ['input', 'change']) field.dispatchEvent(new Event(name, {bubbles: true})) })"
        )
        await self.page.run(f"{script}(document.querySelector({json.dumps(selector)}), {json.dumps(value)})")


_WATCH = """
window.complaints = [];
addEventListener("error", (event) => complaints.push(String(event.message)));
addEventListener("unhandledrejection", (event) => complaints.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => complaints.push(event.violatedDirective + " " + event.blockedURI));
for (const level of ["error", "warn"]) {
  const log = console[level];
  console[level] = (...words) => { complaints.push(words.join(" ")); log(...words); };
}
window.alert = (text) => complaints.push("alert " + text);
"""


@asynccontextmanager
async def a_tab(url: str, *, is_dark: bool = False, width: int = 1280) -> AsyncIterator[Tab]:
    """A new browser. At the end it has complained of nothing, and asked nobody else for anything."""
    async with a_page() as page:
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await page.call("Emulation.setEmulatedMedia", features=[scheme])
        yield Tab(page, url)
        assert await page.run("complaints") == []
        asked = await page.run("performance.getEntriesByType('resource').map(one => new URL(one.name).origin)")
        assert set(asked) == {url}
