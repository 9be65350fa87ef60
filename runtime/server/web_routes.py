"""GET /: a page to talk by. Plain files of the folder web/, which ask nobody but this server."""

from pathlib import Path

from fastapi import APIRouter
from mimo_edge.runtime.server.errors import Problem
from starlette.responses import FileResponse, Response

FOLDER = Path(__file__).parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # nothing inline, nothing from elsewhere; 'self' of connect-src holds for the socket, too
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def routes() -> APIRouter:
    """The page and its files, by the names that are there."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: path for path in FOLDER.iterdir() if path.suffix in _TYPES}

    @router.get("/")
    async def page() -> Response:
        return _sent(files["index.html"])

    @router.get("/web/{name}")
    async def part(name: str) -> Response:
        if name not in files:
            return Problem(404, f"The page has no file {name[:64]!r}.", "not_found").response()
        return _sent(files[name])

    return router


def _sent(path: Path) -> Response:
    return FileResponse(path, headers=HEADERS, media_type=_TYPES[path.suffix])
