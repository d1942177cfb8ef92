"""Runs the worker's own code around a stream; the only file that knows how to call it.

``run_job`` with its log writer, the providers and their decoders are real; the store and the governor are not. Instead
of an SDK's client, a script answers on the clock of a VirtualTimeLoop; or a socket does, if the response itself is
mutated.
"""

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Final, Self, cast

import aiohttp
import httpx2
import msgspec

from api.streams.job_stream import _as_text
from shared.events import Event, OurEvent
from shared.job import JobSpec, Step
from shared.routes import ProviderName
from shared.settings import Settings, load_settings
from shared.store.log import Log
from shared.store.queue import Claim, Ending, Finished, FinishReply
from shared.store.runtime import Runtime
from shared.telemetry import Logger
from tests.mutations.frame import Dialect, End, Piece, Response, Stream, encoded
from worker.governor import Governor, Permit
from worker.outcome import Answered, Failure, Outcome
from worker.providers import open_providers
from worker.providers.transport import BodyStream
from worker.run_job import RunContext, run_context, run_job

PROVIDER_OF: Final = {Dialect.MESSAGES: ProviderName.ANTHROPIC, Dialect.CHAT: ProviderName.OPENAI}
MODEL: Final = "asked"
_REQUEST: Final = b'{"model":"asked","max_tokens":16,"messages":[{"role":"user","content":"Say hello."}]}'
_FOREVER_S: Final = 100_000.0


@dataclasses.dataclass
class Observed:
    """The outcome of a stream."""

    result: dict[str, Any] | None = None
    usage: dict[str, int] | None = None
    code: str = ""
    message: str = ""
    is_retryable: bool = False
    opens_circuit: bool = False
    crash: str = ""
    """An exception that escaped from the worker."""
    events: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)
    """The events in the log, as followers get them."""
    calls: int = 0
    waited_s: float = 0.0
    """The time from the last byte to the end."""

    @property
    def has_succeeded(self) -> bool:
        """Whether the job succeeded."""
        return self.result is not None

    def text_heard(self) -> str:
        """The text that a follower with ``format=text`` gets."""
        heard = []
        for name, data in self.events:
            frame = _as_text(Event(None, name, data))
            if frame.startswith(b"event: delta\n"):
                heard.append(msgspec.json.decode(frame.partition(b"data: ")[2])["text"])
            elif name == OurEvent.RESET:
                heard.clear()
        return "".join(heard)


class ScriptedBody(BodyStream):
    """The scripted body of a response. A cancelled read loses nothing."""

    def __init__(self, pieces: Sequence[Piece], end: End) -> None:
        self._pieces = list(reversed(pieces))
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._due_s: float | None = None
        self.last_s = self._loop.time()

    async def read_some(self) -> bytes:
        """Returns the next piece when it is due."""
        if not self._pieces:
            match self._end:
                case End.CLEAN:
                    return b""
                case End.CUT:
                    raise aiohttp.ClientPayloadError("cut")
                case End.HELD:
                    await self._loop.create_future()
        piece = self._pieces[-1]
        if piece.pause_s:
            if self._due_s is None:
                self._due_s = self._loop.time() + piece.pause_s
            await asyncio.sleep(self._due_s - self._loop.time())
            self._due_s = None
        self._pieces.pop()
        self.last_s = self._loop.time()
        return piece.data

    async def aclose(self) -> None:
        """There is no socket."""


class _ScriptedClient:
    """Replaces a provider's calls: the script responds to its requests."""

    def __init__(self) -> None:
        self.script: Stream | None = None
        self.body: ScriptedBody | None = None

    async def send(self, content: bytes, **_: Any) -> httpx2.Response:
        """A response with the script as its body."""
        assert self.script is not None
        self.body = ScriptedBody(self.script.pieces(), self.script.end)
        return httpx2.Response(
            200, headers=[("content-type", "text/event-stream")], stream=self.body, extensions={"body": self.body}
        )


class _Store:
    """Records what the log writer appends, and the end."""

    def __init__(self) -> None:
        self.observed = Observed()

    def append(
        self, job_id: str, epoch: int, first_seq: int, events: Sequence[tuple[str, bytes]], **_: Any
    ) -> "asyncio.Future[int]":
        """See Log."""
        self.observed.events += events
        reply: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        reply.set_result(first_seq + len(events))
        return reply

    connection_number = 1
    has_taken = staticmethod(Log.has_taken)

    def extend(
        self, job_id: str, epoch: int, first_seq: int, events: Sequence[tuple[str, bytes]], *, on: int
    ) -> "asyncio.Future[list[object]]":
        """See Log."""
        self.observed.events += events
        reply: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()
        reply.set_result([*[b"%d-%d" % (epoch, seq) for seq in range(first_seq, first_seq + len(events))], 0])
        return reply

    async def finish(self, claim: Claim, ending: Ending, **_: Any) -> FinishReply:
        """See Queue."""
        if ending.step is Step.SUCCEED:
            self.observed.result = msgspec.json.decode(ending.result)
            self.observed.usage = msgspec.to_builtins(ending.usage)
        else:
            assert ending.error is not None
            self.observed.code, self.observed.message = (
                ending.error.code,
                str(msgspec.to_builtins(ending.error)["message"]),
            )
        return FinishReply(Finished.ENDED)


class _Governor:
    """Permits every call, and records its outcome."""

    def __init__(self, store: _Store) -> None:
        self._store = store

    async def permit(self, chain: Sequence[Any], claim: Claim, **_: Any) -> Permit:
        """See Governor."""
        self._store.observed.calls += 1
        return Permit("call", claim.id, claim.tenant, "", chain[0], 0, is_probe=False, input_estimate=1)

    def close_call(self, permit: Permit, ended: str, spent: Any, outcome: Outcome | None, *_: Any, **__: Any) -> int:
        """See Governor."""
        if isinstance(outcome, Failure):
            self._store.observed.is_retryable = outcome.is_retryable
            self._store.observed.opens_circuit = outcome.opens_circuit
        return 0

    def on_first_content(self, permit: Permit) -> None:
        """See Governor."""

    def retry_closing(self) -> None:
        """See Governor."""

    def charge(self, *_: Any, **__: Any) -> None:
        """See Governor."""


class _Silent:
    """A logger that logs nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def _settings(url: str) -> dict[Dialect, Settings]:
    return {
        dialect: load_settings(
            provider=name,
            anthropic_base_url=url,
            anthropic_api_key="made-up",
            openai_base_url=f"{url}/v1",
            openai_api_key="made-up",
        )
        for dialect, name in PROVIDER_OF.items()
    }


class WorkerUnderTest:
    """Runs one stream after the other. Create it in a running loop."""

    def __init__(self, url: str = "http://127.0.0.1:9", *, client: _ScriptedClient | None = None) -> None:
        self._store = _Store()
        self._client = client
        settings = _settings(url)
        self.providers: dict[Dialect, Any] = {
            dialect: open_providers(settings[dialect], [name])[name] for dialect, name in PROVIDER_OF.items()
        }
        if client is not None:
            for provider in self.providers.values():
                provider._messages = provider._completions = client
        runtime = cast(
            "Runtime", SimpleNamespace(log=self._store, queue=self._store, upstreams=self._store, figures=None)
        )
        self._contexts: dict[Dialect, RunContext] = {
            dialect: dataclasses.replace(
                run_context(runtime, settings[dialect], {PROVIDER_OF[dialect]: provider}, cast("Logger", _Silent())),
                governor=cast("Governor", _Governor(self._store)),
            )
            for dialect, provider in self.providers.items()
        }
        self._jobs = 0

    @classmethod
    def of_scripts(cls) -> Self:
        """A worker whose streams come from scripts."""
        return cls(client=_ScriptedClient())

    async def run(self, stream: Stream) -> Observed:
        """Runs one job with one attempt."""
        self._store.observed = observed = Observed()
        client = self._client
        if client is not None:
            client.script, client.body = stream, None
        self._jobs += 1
        job = asyncio.create_task(run_job(self._contexts[stream.dialect], _claim(self._jobs)))
        try:
            async with asyncio.timeout(_FOREVER_S):
                await job
        except Exception as error:  # noqa: BLE001 - any exception is a finding
            observed.crash = f"{type(error).__name__}: {str(error)[:200]}"
        if client is not None and client.body is not None:
            observed.waited_s = asyncio.get_running_loop().time() - client.body.last_s
        return observed


def _claim(number: int) -> Claim:
    return Claim(
        id=f"job_{number}",
        tenant="tenant-a",
        epoch=1,
        claimed_ms=0,
        attempt=1,
        next_seq=1,
        started_ms=0,
        timeout_ms=int(_FOREVER_S / 2 * 1000),
        created_ms=0,
        failures=0,
        takeovers=0,
        request=_REQUEST,
        spec=JobSpec(model=MODEL, max_attempts=1, timeout_s=int(_FOREVER_S / 2)),
    )


# --- from a socket ----------------------------------------------------------------------------------------------------


class RawUpstream(asyncio.Protocol):
    """A connection that responds to each request with the script's response, chunked."""

    script: Stream | None = None
    """The script for all connections."""
    requests = 0

    def __init__(self) -> None:
        self._heard = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Responds once the request is complete."""
        self._heard += data
        head, mark, body = self._heard.partition(b"\r\n\r\n")
        lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if mark and len(body) >= int(lengths[0] if lengths else 0):
            self._heard = b""
            type(self).requests += 1
            assert self.script is not None
            assert self._transport is not None
            self._answer(self.script, self._transport)

    @staticmethod
    def _answer(script: Stream, transport: asyncio.Transport) -> None:
        response = script.response
        assert response is not None
        lines = [f"HTTP/1.1 {response.status} Said", "transfer-encoding: chunked", *response.headers]
        if response.content_type is not None:
            lines.append(f"content-type: {response.content_type}")
        if response.encoding:
            lines.append(f"content-encoding: {response.encoding}")
        transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if response.body is None and not response.encoding:
            pieces = [piece.data for piece in script.pieces()]
        else:
            body = script.body() if response.body is None else response.body
            body = body if response.breaks == "only said" else encoded(body, response.encoding, response.breaks)
            places = [0, len(body) // 3, len(body) // 2, len(body)]
            pieces = [body[start:end] for start, end in itertools.pairwise(places)]
        for piece in pieces:
            if piece:
                transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if script.end is End.CUT:
            transport.close()
        else:
            transport.write(b"0\r\n\r\n")


@asynccontextmanager
async def socket_worker() -> AsyncIterator[WorkerUnderTest]:
    """A worker with real providers, and an upstream on a socket."""
    server = await asyncio.get_running_loop().create_server(RawUpstream, "127.0.0.1", 0)
    worker = WorkerUnderTest(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield worker
    finally:
        for provider in worker.providers.values():
            await provider.close()
        server.close()
        await server.wait_closed()


async def run_by_socket(worker: WorkerUnderTest, stream: Stream) -> Observed:
    """Runs a stream with its mutated response."""
    RawUpstream.script = dataclasses.replace(stream, response=stream.response or Response())
    return await worker.run(stream)


__all__ = ["Answered", "Observed", "RawUpstream", "WorkerUnderTest", "run_by_socket", "socket_worker"]
