"""Errors as a client of OpenAI's interface expects them: a status and a JSON object."""

import logging
from dataclasses import dataclass
from typing import Any

from mimo_edge.runtime.bundle.errors import (
    BundleError,
    BusyError,
    InputError,
    MimoError,
    ResourceError,
)
from starlette.responses import JSONResponse

log = logging.getLogger("mimo_edge.server")


class RequestError(MimoError):
    """A request that is refused. `param` names the field, `code` is for programs."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after


class GoneError(Exception):
    """The client has left; nobody reads what it would be told."""


@dataclass(frozen=True)
class Problem:
    """What a client is told."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None

    @property
    def type(self) -> str:
        """OpenAI's class of errors."""
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def problem_of(error: BaseException) -> Problem:
    """What an error means to the client. One of our own making is logged, not told."""
    match error:
        case RequestError():
            return Problem(error.status, str(error), error.code, error.param, error.retry_after)
        case BusyError():
            return Problem(429, str(error), "busy", retry_after=1)
        case BundleError():  # a row that became NaN; the client has done nothing wrong
            log.error("%s", error)
            return Problem(500, str(error), "model_failed")
        case InputError():
            return Problem(400, str(error))
        case ResourceError():
            log.error("%s", error)
            return Problem(503, str(error), "no_resources", retry_after=10)
        case MemoryError():
            log.error("out of memory")
            return Problem(503, "The server is out of memory.", "no_resources", retry_after=10)
        case MimoError():
            log.error("%s", error)
            return Problem(500, str(error))
    log.error("a fault of the server", exc_info=error)
    return Problem(500, "The server has failed on this request; its log says why.", "fault")
