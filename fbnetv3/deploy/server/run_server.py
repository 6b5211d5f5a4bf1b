"""Run a server until SIGTERM or Ctrl-C: accepted requests are then answered, and new ones refused."""

from __future__ import annotations

import asyncio
import signal
import socket
from asyncio import Transport
from collections.abc import Mapping
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from fbnetv3.deploy.server.http_app import create_app
from fbnetv3.deploy.server.inference_service import InferenceService
from fbnetv3.deploy.server.served_model import ServedModel
from fbnetv3.deploy.server.server_limits import ServerLimits
from fbnetv3.deploy.server.server_metrics import ServerMetrics

_BACKLOG = 2048  # connections that wait to be accepted


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on a port, where 0 is any free one. Raise an OSError if that is not allowed, or another server does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def run_server(models: Mapping[str, ServedModel], listener: socket.socket, limits: ServerLimits) -> int:
    """Answer requests on a listening socket until SIGTERM or Ctrl-C, and then those that are already accepted.

    Returns:
        The number of requests for predictions that were answered, with a prediction or an error.
    """
    metrics = ServerMetrics()
    app = create_app(InferenceService(models, limits, metrics))
    config = uvicorn.Config(
        app,
        http=_HeaderTimeoutProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=max(1, round(limits.timeout)),
        # The request in progress may still be sent, and then be answered
        timeout_graceful_shutdown=max(1, round(2 * limits.timeout)),
    )
    server = uvicorn.Server(config)

    def stop(number: int, frame: Any) -> None:
        server.should_exit = True

    # uvicorn has its own handlers while it runs, and then repeats the signals for these
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return metrics.count_requests()


class _HeaderTimeoutProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Closes connections on which no headers of a request arrive in time, which uvicorn would keep forever."""

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_between_requests() and self._header_timer is None:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
        super().connection_lost(exc)

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_still_waiting)

    def _close_if_still_waiting(self) -> None:
        self._header_timer = None
        if self._is_between_requests() and not self.transport.is_closing():
            self.transport.close()
