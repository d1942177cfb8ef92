"""A real, headless Chromium, driven by its own protocol, so that no browser package is needed."""

import asyncio
import base64
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The name of Debian's package is chromium."""


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._calls = 0
        self.events: list[dict[str, Any]] = []
        """What the browser reported up to the last call, of the domains that are enabled."""

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends one command of the protocol and returns its reply; events in between are kept."""
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": parameters})
        async with asyncio.timeout(20):
            while True:
                answer = await self._socket.receive_json()
                if answer.get("id") == self._calls:
                    assert "error" not in answer, answer
                    result: dict[str, Any] = answer["result"]
                    return result
                self.events.append(answer)

    async def open(self, url: str) -> None:
        """Starts to load the URL."""
        await self.call("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; None while the page is loading."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    async def text(self, selector: str) -> str:
        """An element's text; empty if the element does not exist yet."""
        return str(await self.run(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''") or "")

    async def picture(self) -> bytes:
        """A screenshot, as PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(answer["data"])


@asynccontextmanager
async def a_page() -> AsyncIterator[Page]:
    """A new browser with one empty tab."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(prefix="tokenspool-chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",  # Chromium's sandbox does not start as root
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--window-size=900,600",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            port = await _port_of(process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                    tabs = await response.json()
                url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    page = Page(socket)
                    await page.call("Page.enable")
                    yield page
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def _port_of(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    output = line = b""
    async with asyncio.timeout(30):
        while b"DevTools listening on ws://" not in output:
            line = await process.stderr.readline()
            assert line, output.decode(errors="replace")
            output += line
    return int(line.split(b"ws://127.0.0.1:")[1].split(b"/")[0])
