"""uvicorn's server with a drain (api/state/drain.py): a stop breaks no response.

uvicorn itself closes its listeners at the first signal, before a load balancer can notice that the process stops.
"""

import signal
import socket
from types import FrameType

import uvicorn

from api.state.api_state import ApiState
from api.state.drain import Phase


class Server(uvicorn.Server):
    """``hurried_by``: signals that end the drain at once if it has begun. A supervisor's child leaves SIGTERM out: it
    gets two for one stop, since systemd sends it to every process of the service and the supervisor passes it on.
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
        """Remembers the listening sockets, to close them during the drain."""
        self._listeners = sockets or []
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal handler, which only sets what ``on_tick`` reads."""
        if not self.should_exit:
            self.should_exit = True
        elif sig in self._hurried_by:
            self.force_exit = self._is_hurried and sig == signal.SIGINT
            self._is_hurried = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second. True once the drain is over."""
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
            connection.shutdown()  # closes an idle connection at once, a busy one after its response
