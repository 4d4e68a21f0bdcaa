"""uvicorn, with bounds on connections and headers, and an end that lets answers end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from outsize.errors import UsageError
from outsize.serve.guard import Guard, Trust

HEADERS_S = (
    15.0  # that a request's headers may take to arrive, from the connection's beginning or the last answer's end
)
IDLE_S = 30  # that a connection may stay open between requests
MOST_CONNECTIONS = 1024
HEADER_BYTES = 64 << 10


class Protocol(H11Protocol):
    """Leaves clients that send their headers slowly, and those beyond the bound of connections."""

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._arm(HEADERS_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        self._disarm()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """An answer is at its end; another request may follow."""
        super().on_response_complete()
        self._arm(HEADERS_S + IDLE_S)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._late, self.cycle)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self, cycle: Any) -> None:
        if self.cycle is cycle and self.transport is not None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Ends at signals that its caller handles."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves them alone."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to. Raises UsageError where there is none to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        raise UsageError(f"{host} port {port} cannot be had: {error}", remedy="another --port") from error
    return sock


def serve(app: Any, trust: Trust, sock: socket.socket, drain_s: float, on_ready: Callable[[], None]) -> int:
    """Answers until SIGTERM or ctrl-C, then lets answers end for so many seconds. The signal's number.

    A second signal ends at once.
    """
    config = uvicorn.Config(
        Guard(app, trust),
        http=Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=max(int(drain_s), 0),
        h11_max_incomplete_event_size=HEADER_BYTES,
        server_header=False,
        date_header=False,
    )
    server = Server(config)
    came = [0]

    def end(number: int, frame: object) -> None:
        server.force_exit = server.should_exit
        server.should_exit = True
        came[0] = came[0] or number

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}

    async def run() -> None:
        task = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if server.started:
            on_ready()
        await task

    try:
        asyncio.run(run())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return came[0]
