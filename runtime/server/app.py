"""The application: every endpoint, and errors as OpenAI's clients expect them."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from mimo_edge.runtime.bundle.errors import MimoError
from mimo_edge.runtime.server import (
    chat,
    realtime,
    speech,
    state_routes,
    transcriptions,
    voice_routes,
    web_routes,
)
from mimo_edge.runtime.server.errors import Problem, problem_of
from mimo_edge.runtime.server.guard import Guard
from mimo_edge.runtime.server.service import Service
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

TITLE = "mimo-edge"


def make_app(service: Service, *, key: str | None = None, origins: tuple[str, ...] = ()) -> ASGIApp:
    """All endpoints behind the guard."""
    app = FastAPI(title=TITLE, docs_url=None, redoc_url=None)
    for part in (speech, transcriptions, chat, realtime, voice_routes, state_routes):
        app.include_router(part.routes(service))
    app.include_router(web_routes.routes())
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for kind in (MimoError, MemoryError, Exception):  # the last also ends the connection
        app.add_exception_handler(kind, _failed)
    return Guard(app, service, key=key, origins=origins)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return Problem(400, f"{place}: {first['msg']}", "invalid", place or None).response()


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = Problem(error.status_code, str(error.detail)).response()
    response.headers.update(error.headers or {})
    return response


async def _failed(_: Request, error: Exception) -> Response:
    return problem_of(error).response()
