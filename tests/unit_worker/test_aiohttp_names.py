"""The names of aiohttp's insides that our transport uses: a version without one of them must fail here first."""

import asyncio
import functools

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import ContentEncodingError

from worker.providers.transport import _Connector, _ResponseHandler


async def test_the_connector_makes_its_handlers_where_we_replace_them() -> None:
    """In ``_factory``, which is called once a connection."""
    async with aiohttp.TCPConnector() as theirs, _Connector(limit=1) as ours:
        for connector, kind in ((theirs, ResponseHandler), (ours, _ResponseHandler)):
            factory = connector._factory
            assert isinstance(factory, functools.partial)
            assert (factory.func, factory.keywords) == (kind, {"loop": asyncio.get_running_loop()})


async def test_a_handler_has_the_body_that_it_fills() -> None:
    """And tells it of an error by the names that ours uses."""
    handler = ResponseHandler(asyncio.get_running_loop())
    assert handler._payload is None
    assert all(
        hasattr(aiohttp.StreamReader, name) for name in ("is_eof", "exception", "set_exception", "readany", "at_eof")
    )
    assert ContentEncodingError("Can not decode. Install something").message == "Can not decode. Install something"
