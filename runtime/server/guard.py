"""Who may come in: keys, origins, sizes. A layer around the application, below every endpoint."""

import asyncio
import hmac
import ipaddress
from typing import Any

from mimo_edge.runtime.server.errors import Problem
from mimo_edge.runtime.server.service import Service
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/", "/health")  # without a key: what a load balancer asks, and the page that asks for it
_SUBPROTOCOL = "openai-insecure-api-key."  # how browsers send a key: they cannot set headers


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Refuses before anything is read.

    Without a key the server serves this machine only, and a page of some other site must not use
    it through the browser: so the Host must be a loopback name then. An Origin must be the server
    itself, or one of `origins`.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        *,
        key: str | None = None,
        origins: tuple[str, ...] = (),
    ) -> None:
        self._app, self._service, self._key, self._origins = app, service, key, origins
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        problem = self._refused(scope)
        if scope["type"] == "websocket":
            if problem is None:
                await self._app(scope, receive, send)
            else:
                await receive()
                await send({"type": "websocket.close", "code": 1008})  # HTTP 403
            return
        sender = _Sender(send, scope, self._service)
        if problem is None and self._open >= self._service.limits.requests:
            problem = Problem(429, "Too many requests are open.", "busy", retry_after=5)
        if problem is not None:
            await problem.response()(scope, receive, sender)
            return
        self._open += 1
        try:
            await self._app(scope, _Body(receive, sender, self._service), sender)
        finally:
            self._open -= 1

    def _refused(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        origin = headers.get("origin")
        ours = (f"http://{host}", f"https://{host}", *self._origins)
        if origin is not None and origin not in ours:
            return Problem(403, f"Pages of {origin[:100]} may not use this server.", "origin")
        if self._key is None:
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if not is_loopback(name.strip("[]")):
                return Problem(403, "Without a key only this machine is served.", "host")
            return None
        if scope["path"] in OPEN or scope["path"].startswith("/web/"):
            return None
        if not any(_same(given, self._key) for given in _keys(headers)):
            return Problem(401, "The key is missing or wrong.", "invalid_api_key")
        return None


def _keys(headers: Headers) -> list[str]:
    kind, _, key = headers.get("authorization", "").partition(" ")
    offered = headers.get("sec-websocket-protocol", "").split(",")
    names = (name.strip() for name in offered)
    keys = [n.removeprefix(_SUBPROTOCOL) for n in names if n.startswith(_SUBPROTOCOL)]
    return [*keys, key.strip()] if kind.lower() == "bearer" else keys


def _same(given: str, key: str) -> bool:
    """In a time that does not tell how much of it is right."""
    # headers were read as latin-1, byte by byte
    return hmac.compare_digest(given.encode("latin-1", "replace"), key.encode("utf-8"))


class _Sender:
    """Counts answers, and puts another in place of one whose request was too large."""

    def __init__(self, send: Send, scope: Scope, service: Service) -> None:
        self._send, self._scope, self._service = send, scope, service
        self.instead: Problem | None = None
        self.begun = self._replaced = False

    async def __call__(self, message: Message) -> None:
        if self._replaced:
            return
        if message["type"] == "http.response.start" and not self.begun:
            self.begun = True
            if self.instead is not None:
                problem, self.instead = self.instead, None
                self._count(problem.status)
                await problem.response()(self._scope, _nothing, self._send)
                self._replaced = True
                return
            self._count(message["status"])
        await self._send(message)

    def _count(self, status: int) -> None:
        route: Any = self._scope.get("route")
        path = getattr(route, "path", "other")
        self._service.metrics.requests.labels(path, str(status)).inc()


class _Body:
    """A request's body, which may neither be too large nor come too slowly."""

    def __init__(self, receive: Receive, sender: _Sender, service: Service) -> None:
        self._receive, self._sender, self._limits = receive, sender, service.limits
        self._bytes, self._whole = 0, False
        self._until = asyncio.get_running_loop().time() + self._limits.body_seconds

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            return self._end(Problem(408, "The request's body did not come in time.", "timeout"))
        if message["type"] != "http.request":
            return message
        self._bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._bytes > self._limits.body_bytes:
            what = f"The request is larger than {self._limits.body_bytes} bytes."
            return self._end(Problem(413, what, "too_large"))
        return message

    def _end(self, problem: Problem) -> Message:
        """The application reads an empty end, and what it makes of that is not sent."""
        self._whole, self._sender.instead = True, problem
        return {"type": "http.request", "body": b"", "more_body": False}


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
