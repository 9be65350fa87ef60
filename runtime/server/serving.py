"""Running the application: one process, one port, a drain at the end."""

import contextlib
import errno
import logging
import signal
import socket
import threading
import time
from types import FrameType
from typing import Protocol

import uvicorn
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.server.guard import is_loopback
from mimo_edge.runtime.server.service import Service
from starlette.types import ASGIApp

DRAIN_SECONDS = 60.0
_CLOSING = 5  # seconds for connections to end after the drain
log = logging.getLogger("mimo_edge.server")


def listen(host: str, port: int, *, key: str | None) -> socket.socket:
    """The port, before any long work. Raises InputError if it cannot be had or should not be."""
    if key is None and not is_loopback(host):
        raise InputError(
            f"on {host} others can reach the server: give them a key with --api-key, or listen on "
            "127.0.0.1"
        )
    return open_port(host, port)


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=512)
    except OverflowError:
        raise InputError(f"port must be 0 to 65535, not {port}") from None
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "it is in use by another program" if taken else error.strerror or str(error)
        raise InputError(
            f"cannot listen on {host}, port {port}: {why}; choose another --host or --port"
        ) from error
    # connections inherit it; asyncio sets it only where the protocol was named, and without it a
    # first piece of sound waits 40 ms behind its header
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Beside(Protocol):
    """Another protocol on the same service, in the same event loop."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Server(uvicorn.Server):
    """Serves until it is told to drain: then no new work is taken, what was let in ends, for at
    most `drain_seconds`, and `run` returns. A second signal does not wait."""

    def __init__(
        self,
        service: Service,
        app: ASGIApp,
        *,
        drain_seconds: float = DRAIN_SECONDS,
        beside: Beside | None = None,
    ) -> None:
        self._service, self._seconds, self._beside = service, drain_seconds, beside
        self._until: float | None = None
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_CLOSING,
        )
        super().__init__(config)

    def drain(self) -> None:
        """Take no new work, and end when the work is done. From any thread."""
        self._service.draining = True
        self._until = time.monotonic() + self._seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM and Ctrl-C."""
        if self._until is None:
            log.warning("%s: taking no new work", signal.Signals(sig).name)
            self.drain()
        else:
            self._until = 0.0
            self.force_exit = self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._until is not None and (self._service.open == 0 or time.monotonic() > self._until):
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, of every protocol."""
        if self._beside is not None:
            await self._beside.start()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all connections."""
        if self._beside is not None:
            await self._beside.stop()
        await super().shutdown(sockets)

    def run_on(self, sock: socket.socket) -> None:
        """Serve on a port that is open already; loads the model meanwhile."""
        loading = threading.Thread(target=self._service.load, name="mimo-edge loading")
        loading.start()
        with contextlib.closing(sock):
            self.run([sock])
        loading.join()
        self._service.close()
