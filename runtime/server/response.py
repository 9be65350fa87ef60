"""An HTTP response that is generated while it is sent, and ends when the client has left."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mimo_edge.runtime.server.errors import GoneError, Problem, RequestError, problem_of
from mimo_edge.runtime.server.service import Service
from mimo_edge.runtime.server.work import Work, working
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

EVENTS = "text/event-stream"


class WorkResponse(Response):
    """`produce` gives the body in pieces, in a thread. Until the first is there, an error becomes
    an error response; after that an event stream tells it, and other bodies break off."""

    def __init__(
        self,
        service: Service,
        produce: Callable[[Work[bytes]], Iterator[bytes]],
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.service, self.produce = service, produce
        super().__init__(None, 200, headers, media_type)
        del self.headers["content-length"]  # not known yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._begun = False
        try:
            async with working(self.service, self.produce) as work:
                watch = asyncio.create_task(_until_gone(receive, work))
                try:
                    await self._send(work, send)
                finally:
                    watch.cancel()
        except GoneError:
            self.service.metrics.cancellations.inc()
        except Exception as error:
            problem = problem_of(error)
            if not self._begun:
                await problem.response()(scope, receive, send)
            elif self.media_type == EVENTS:
                await send(_body(event(problem.body()), more=False))
            else:
                raise BrokenOff(problem) from error

    async def _send(self, work: Work[bytes], send: Send) -> None:
        seconds = self.service.limits.seconds
        try:
            async with asyncio.timeout(seconds):
                async for piece in work:
                    if not self._begun:
                        self._begun = True
                        await send(self._start())
                    await send(_body(piece, more=True))
                if not self._begun:
                    self._begun = True
                    await send(self._start())
                await send(_body(b"", more=False))
        except TimeoutError:
            raise RequestError(
                f"The request took longer than {seconds:g} s.", status=504, code="timeout"
            ) from None

    def _start(self) -> dict[str, Any]:
        return {"type": "http.response.start", "status": 200, "headers": self.raw_headers}


class BrokenOff(Exception):
    """A body that has begun cannot be finished; the connection is closed, so the client sees it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)


def event(content: object, name: str | None = None) -> bytes:
    """A server-sent event."""
    said = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {said}\n\n".encode()


def _body(piece: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": piece, "more_body": more}


async def _until_gone(receive: Receive, work: Work[bytes]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    work.cancel(GoneError())
