"""Responses byte for byte as on the wire, without the Date header, which differs between equal responses."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

REQUEST_ID = "the-same-for-all"


class Response(NamedTuple):
    """A whole response."""

    status: int
    headers: tuple[bytes, ...]
    """The header lines, in order."""
    body: bytes


class Line:
    """A client with one connection, which it keeps."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, keys: Mapping[str, str]
    ) -> None:
        self._keys = keys
        self._reader = reader
        self._writer = writer
        self.host = host

    async def ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        """Sends a request and reads its response, which must have a length or be chunked."""
        self.begin(method, path, headers=headers, body=body)
        status, header_lines = await self._head()
        sizes = [line for line in header_lines if line.lower().startswith(b"content-length:")]
        content = b""
        if method != "HEAD" and status not in (204, 304):
            if any(line.lower() == b"transfer-encoding: chunked" for line in header_lines):
                content = await self._chunks()
            else:
                content = await self._reader.readexactly(int(sizes[0].partition(b":")[2]))
        kept = tuple(line for line in header_lines if not line.lower().startswith(b"date:"))
        return Response(status, kept, content)

    def begin(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> None:
        """Sends a request without waiting for its response."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}", f"X-Request-ID: {REQUEST_ID}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))

    def of(self, tenant: str, **more: str) -> dict[str, str]:
        """A tenant's headers: its key, and an X-Tenant that counts only without keys. In ``more``, _ stands for -."""
        named = {name.replace("_", "-"): value for name, value in more.items()}
        if key := self._keys.get(tenant):
            return {"Authorization": f"Bearer {key}", "X-Tenant": next(iter(self._keys)), **named}
        return {"X-Tenant": tenant, **named}

    async def _head(self) -> tuple[int, list[bytes]]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
        first, *header_lines = head.split(b"\r\n")
        return int(first.split(b" ")[1]), header_lines

    async def _chunks(self) -> bytes:
        pieces = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            pieces.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return b"".join(pieces)


@asynccontextmanager
async def a_line(url: str, keys: Mapping[str, str] | None = None) -> AsyncIterator[Line]:
    """A connection to an API. ``keys``: by tenant, if it asks for them."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=64 << 20)
    try:
        yield Line(reader, writer, parts.netloc, keys or {})
    finally:
        writer.transport.abort()
