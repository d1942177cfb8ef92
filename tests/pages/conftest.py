"""The page in a real browser, on a real API with a worker and the simulator."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvloop

from shared.api_key import Scope
from simulator.app import Simulator, running
from tests.keys.conftest import make_key
from tests.support.browser import Page, a_page
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving
from tests.support.wait import wait_until
from tests.support.working import working

TENANT = "acme"
PICTURES = os.environ.get("TOKENSPOOL_TEST_PICTURES")
"""A folder for screenshots; without it none is kept."""


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of `tokenspool serve`."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass(frozen=True)
class Window:
    """The dashboard in a tab, and a client of the same API."""

    page: Page
    served: Served
    simulator: Simulator

    async def key(self, *scopes: Scope, tenant: str = TENANT) -> str:
        """A new key's text."""
        return (await make_key(self.served.api.runtime, tenant=tenant, scopes=frozenset(scopes))).text

    async def sign_in(self, key: str) -> None:
        """Opens the page and types the key."""
        await self.page.open(f"{self.served.url}/")
        await self.shows("input[name=key]")
        await self.fill("input[name=key]", key)
        await self.press("Sign in")
        await self.shows("nav a")

    async def go(self, place: str) -> None:
        """Opens a place of the page: what stands after #."""
        await self.page.run(f"location.hash = {json.dumps('#/' + place)}")

    async def shows(self, selector: str, text: str = "") -> None:
        """Waits until an element that the selector finds has the text in it."""
        script = f"[...document.querySelectorAll({json.dumps(selector)})].some(one => one.textContent.includes({json.dumps(text)}))"

        await self.until(script, f"{selector} with {text!r}")

    async def until(self, script: str, what: str, *, timeout_s: float = 20) -> None:
        """Waits until the expression is true in the page."""

        async def is_so() -> bool:
            return await self.page.run(script) is True

        try:
            await wait_until(is_so, what, timeout_s=timeout_s)
        except AssertionError as failure:
            failure.add_note(f"The page: {await self.page.run('document.body.innerText')}")
            raise

    async def press(self, text: str) -> None:
        """Presses the first button or link with this text, in the open dialog if there is one."""
        await self.shows("button, a", text)
        find = (
            "[...(document.querySelector('dialog[open]') ?? document).querySelectorAll('button, a')]"
            f".find(one => one.textContent.trim() === {json.dumps(text)})"
        )
        assert await self.page.run(f"{find} ? ({find}.click(), true) : false"), text

    async def fill(self, selector: str, text: str) -> None:
        """Types a text into a field, as soon as it is there."""
        await self.shows(selector)
        await self.page.run(
            f"{{ const field = document.querySelector({json.dumps(selector)}); field.value = {json.dumps(text)};"
            " field.dispatchEvent(new Event('input', {bubbles: true})); }"
        )

    async def drop(self, selector: str, name: str, text: str) -> None:
        """Drops a file on an element."""
        await self.page.run(
            "{ const data = new DataTransfer();"
            f" data.items.add(new File([{json.dumps(text)}], {json.dumps(name)}));"
            f" document.querySelector({json.dumps(selector)})"
            ".dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})); }"
        )

    async def has(self, text: str) -> bool:
        """Whether the text stands on the page now."""
        return bool(await self.page.run(f"document.body.innerText.includes({json.dumps(text)})"))

    async def keep_pictures(self, name: str) -> None:
        """Keeps the page as it is now, in both themes and on a phone, if there is a folder for that."""
        if PICTURES is None:
            return
        for theme, width in (("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)):
            media = [{"name": "prefers-color-scheme", "value": theme}]
            await self.page.call("Emulation.setEmulatedMedia", features=media)
            await self.page.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=850, deviceScaleFactor=1, mobile=width < 600
            )
            (Path(PICTURES) / f"{name}-{theme}-{width}.png").write_bytes(await self.page.picture())
        await self.page.call("Emulation.clearDeviceMetricsOverride")

    async def is_clean(self) -> None:
        """Neither an error in the console nor a request to elsewhere. 401 asks for the key, 404 whether a name is free."""
        await self.page.run("1")
        seen: dict[str, list[dict[str, Any]]] = {}
        for event in self.page.events:
            seen.setdefault(event.get("method", ""), []).append(event["params"])
        assert not seen.get("Runtime.exceptionThrown")
        assert not [one for one in seen.get("Runtime.consoleAPICalled", []) if one["type"] in ("error", "warning")]
        refused = [one["entry"] for one in seen.get("Log.entryAdded", [])]
        asked = ("/v1/limits", "/v1/tenants/")
        assert not [
            one
            for one in refused
            if one["level"] == "error"
            and not one.get("url", "").startswith(tuple(self.served.url + path for path in asked))
        ], refused
        urls = {one["request"]["url"] for one in seen["Network.requestWillBeSent"]}
        assert {
            url for url in urls if not url.startswith((self.served.url, f"blob:{self.served.url}", "data:"))
        } == set()


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with running() as simulator:
        yield simulator


@pytest.fixture
async def window(real_redis: RedisUnderTest, simulator: Simulator) -> AsyncIterator[Window]:
    """An API that asks for keys, a worker, and a browser's tab."""
    settings: dict[str, Any] = {"webhook_allow_networks": "127.0.0.0/8", "webhook_retry_s": (0.05,)}
    async with (
        serving(real_redis.url, auth="keys", **settings) as served,
        working(real_redis.url, simulator.url, upstream_retry_base_s=0.01, idle_check_s=0, **settings),
        a_page() as page,
    ):
        for domain in ("Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        yield Window(page, served, simulator)
        await page.open("about:blank")


def client(window: Window, key: str) -> httpx2.AsyncClient:
    """A client with the key."""
    return httpx2.AsyncClient(base_url=window.served.url, headers={"Authorization": f"Bearer {key}"})
