"""The names of uvicorn that our connections and our server use: a version without one of them must fail here first."""

import ast
import asyncio
import inspect
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from api.edge.connections import BoundedConnection, _Cycle
from api.edge.server import Server
from api.edge.uvicorn_internals import abort

_OVERRIDDEN: Final[dict[type, tuple[type, set[str]]]] = {
    BoundedConnection: (
        HttpToolsProtocol,
        {
            *("connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing"),
            *("on_message_begin", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
            *("_start_asgi_task", "on_response_complete", "shutdown"),
        },
    ),
    _Cycle: (RequestResponseCycle, {"send"}),
    Server: (uvicorn.Server, {"startup", "handle_exit", "on_tick"}),
}
"""Our class → uvicorn's, and which of its methods ours replace: under another name they would never be called."""

_CONNECTION: Final = frozenset(
    {
        *(
            "connections",
            "cycle",
            "flow",
            "headers",
            "loop",
            "parser",
            "pipeline",
            "server_state",
            "tasks",
            "transport",
        ),
        "url",
    }
)
_CYCLE: Final = frozenset(
    {
        *("chunked_encoding", "disconnected", "expected_content_length", "keep_alive", "message_event", "more_body"),
        *("response_complete", "response_started", "run_asgi", "scope", "transport", "waiting_for_100_continue"),
    }
)
_STATE: Final = frozenset({"connections", "default_headers", "tasks", "total_requests"})
_SERVER: Final = frozenset({"force_exit", "lifespan", "server_state", "servers", "should_exit"})


class _Transport(asyncio.Transport):
    is_aborted = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.is_aborted

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self.is_aborted = True


def _own_names(kind: type) -> set[str]:
    """What a class's methods look for on ``self``."""
    tree = ast.parse(inspect.getsource(kind))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }


def test_what_we_override_is_there() -> None:
    """And nothing else is overridden by chance."""
    for ours, (theirs, names) in _OVERRIDDEN.items():
        assert {name for name in vars(ours) if hasattr(theirs, name) and not name.startswith("__")} == names
        assert all(inspect.isfunction(getattr(theirs, name)) for name in names)


async def test_what_we_read_is_there() -> None:
    """On a connection of uvicorn's own in the middle of a request, and on its server."""
    called = asyncio.Event()
    transport = _Transport()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert abort(receive)
        called.set()
        assert (await receive())["type"] == "http.disconnect"

    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    connection = HttpToolsProtocol(config, state, {})
    connection.connection_made(transport)
    connection.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n")
    assert set(vars(connection)) >= _CONNECTION
    assert set(dir(connection.cycle)) >= _CYCLE
    assert set(vars(state)) >= _STATE
    assert set(vars(uvicorn.Server(config))) | {"lifespan", "servers"} >= _SERVER
    await called.wait()
    assert transport.is_aborted
    connection.connection_lost(None)
    await asyncio.gather(*state.tasks)


def test_the_lists_are_complete() -> None:
    """A name that is used and listed nowhere would be found by an attack only."""
    ours = set(vars(BoundedConnection)) | {"is_counted"}
    assert {name for name in _own_names(BoundedConnection) if not name.startswith("_")} - ours == _CONNECTION
    ours = set(vars(_Cycle))
    assert {name for name in _own_names(_Cycle) if not name.startswith("_")} - ours <= _CYCLE
