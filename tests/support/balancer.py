"""A small load balancer: it polls each backend's ``/health/ready`` and sends no new request to one that is not ready.

It keeps its connections to the backends and never repeats a request, so that the client sees every broken response.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

_POLL_S = 0.2
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "host", "content-length")


class Balancer:
    """A test may change ``backends`` while it runs."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.url = ""
        self.backends: list[str] = []
        self._ready: list[str] = []
        self._session = session
        self._turns = itertools.count()

    def is_ready(self, backend: str) -> bool:
        """Whether the balancer sends requests to it."""
        return backend in self._ready

    async def poll(self) -> None:
        """Polls the backends until it is cancelled."""
        while True:
            answers = await asyncio.gather(*[self._says_ready(backend) for backend in self.backends])
            self._ready = [backend for backend, is_ready in zip(self.backends, answers, strict=False) if is_ready]
            await asyncio.sleep(_POLL_S)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Forwards a request, and streams its response back."""
        if not self._ready:
            return web.Response(status=502, text="no backend is ready")
        backend = self._ready[next(self._turns) % len(self._ready)]
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        body = await request.read()
        try:
            async with self._session.request(
                request.method, backend + request.path_qs, headers=headers, data=body
            ) as found:
                kept = {name: value for name, value in found.headers.items() if name.lower() not in _HOP_BY_HOP}
                response = web.StreamResponse(status=found.status, headers=kept)
                await response.prepare(request)
                async for chunk in found.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except aiohttp.ClientConnectionError as error:
            return web.Response(status=502, text=type(error).__name__)

    async def _says_ready(self, backend: str) -> bool:
        try:
            async with self._session.get(f"{backend}/health/ready", timeout=aiohttp.ClientTimeout(2)) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


@contextlib.asynccontextmanager
async def a_balancer() -> AsyncIterator[Balancer]:
    """A balancer on a free port."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(None), auto_decompress=False
    ) as session:
        balancer = Balancer(session)
        app = web.Application(client_max_size=1 << 20)
        app.router.add_route("*", "/{path:.*}", balancer.handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        balancer.url = f"http://{host}:{port}"
        polling = asyncio.create_task(balancer.poll(), name="balancer polls")
        try:
            yield balancer
        finally:
            polling.cancel()
            await asyncio.wait((polling,))
            await runner.cleanup()
