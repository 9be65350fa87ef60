"""GET /v1/models, /health and /metrics."""

import time

from fastapi import APIRouter
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.service import Service
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response


def routes(service: Service) -> APIRouter:
    """The endpoints."""
    router = APIRouter()
    began = int(time.time())
    model = {"id": service.name, "object": "model", "created": began, "owned_by": "mimo-edge"}

    @router.get("/v1/models")
    async def models() -> dict[str, object]:
        """The one model there is."""
        return {"object": "list", "data": [model]}

    @router.get("/v1/models/{name:path}")
    async def one(name: str) -> dict[str, object]:
        """The model by its name."""
        if name != service.name:
            raise RequestError(
                f"There is no model {name[:64]!r}, only {service.name!r}.",
                status=404,
                code="model_not_found",
                param="model",
            )
        return model

    @router.get("/health")
    async def health() -> Response:
        """Ready or not, and why."""
        scheduler, reason = service.model.scheduler, service.why_not()
        said = {
            "status": "ready" if reason is None else "not ready",
            "reason": reason,
            "slots": scheduler.slots,
            "busy": scheduler.busy,
            "waiting": scheduler.waiting,
        }
        return JSONResponse(said, 200 if reason is None else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
