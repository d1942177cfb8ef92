"""uvicorn's server, with an end that breaks no response: at a signal it drains (api/state/drain.py) before it shuts down.

uvicorn by itself closes its listeners at the first signal, before any load balancer can have noticed.
"""

import signal
import socket
from types import FrameType

import uvicorn

from api.state.api_state import ApiState
from api.state.drain import Phase


class Server(uvicorn.Server):
    """``hurried_by``: the signals that end a drain at once. A child of a supervisor leaves SIGTERM out: systemd sends it to
    every process of a service, and the supervisor passes it on as well.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        hurried_by: frozenset[signal.Signals] = frozenset({signal.SIGTERM, signal.SIGINT}),
    ) -> None:
        super().__init__(config)
        self._hurried_by = hurried_by
        self._is_hurried = False
        self._listeners: list[socket.socket] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Remembers what it listens on."""
        self._listeners = sockets or []
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal handler: it only notes what ``on_tick`` acts on."""
        if not self.should_exit:
            self.should_exit = True
        elif sig in self._hurried_by:
            self.force_exit = self._is_hurried and sig == signal.SIGINT
            self._is_hurried = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second. True once the drain is over."""
        if not await super().on_tick(counter):
            return False
        api: ApiState = self.lifespan.state["api"]
        phase = api.wind_down(is_hurried=self._is_hurried)
        if phase is Phase.CLOSED and self.servers:
            self._stop_listening()
        return phase is Phase.OVER

    def _stop_listening(self) -> None:
        for server in self.servers:
            server.close()
        for listener in self._listeners:
            listener.close()
        self.servers, self._listeners = [], []
        for connection in list(self.server_state.connections):
            connection.shutdown()  # closes an idle one at once, another after its response
