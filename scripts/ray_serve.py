"""The server on Ray Serve: replicas, each with a model of its own. See docs/scale.md.

    export MIMO_EDGE_API_KEY=...        # on every machine, before `ray start`
    serve run mimo_edge.scripts.ray_serve:app bundle=/models/bundle slots=8 max_replicas=4

With the extras `ray` and `server` on every machine.
"""

import os
from pathlib import Path

from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.server.app import make_app
from mimo_edge.runtime.server.limits import Limits
from mimo_edge.runtime.server.service import Service, Streaming
from mimo_edge.runtime.server.voices import Voices
from mimo_edge.runtime.tasks import MimoAudio
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from starlette.types import ASGIApp

KEY = "MIMO_EDGE_API_KEY"
# requests with the same X-Session-ID go to the same replica, and to its successor if it is full
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


class Settings(BaseModel):
    """What `serve run` takes, as NAME=VALUE."""

    model_config = ConfigDict(extra="forbid")
    bundle: Path  # the same path on every machine
    backend: str = "ort-cpu"
    name: str = "mimo"
    threads: int | None = None
    slots: int = Field(default=4, ge=1)
    queue: int = Field(default=8, ge=0)
    sessions: int = Field(default=16, ge=0)  # realtime connections of a replica
    chunk: int | None = None
    voices: Path | None = None  # read when a replica starts, on a disk that all share
    cpus: float = 2  # of a replica
    gpus: float = 0
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=4, ge=1)
    drain_seconds: float = 60.0


@serve.deployment(name="mimo-edge")
@serve.ingress()
class Replica:
    """One model and its server, without a port: Ray's proxy brings the requests."""

    def __init__(self, settings: Settings) -> None:
        self._key = os.environ.get(KEY)
        if not self._key:
            raise InputError(
                f"others reach the proxy of Ray Serve: set {KEY} on every machine before ray starts"
            )
        limits = Limits(queue=settings.queue, sessions=settings.sessions)
        self._model = MimoAudio.open(
            settings.bundle, settings.backend, slots=settings.slots, threads=settings.threads
        )
        self._model.__enter__()
        voices = Voices(
            self._model, settings.voices, most=limits.voices, max_seconds=limits.voice_seconds
        )
        self._service = Service(
            self._model,
            voices,
            name=settings.name,
            limits=limits,
            streaming=Streaming(chunk=settings.chunk),
        )
        self._service.load()  # a replica counts as started when it can serve

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What the proxy talks to."""
        return make_app(self._service, key=self._key)

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises. Want of memory passes by itself, and is
        told to callers."""
        if (reason := self._service.broken()) is not None:
            raise RuntimeError(reason)

    def __del__(self) -> None:
        """Ray has waited for the requests that were let in."""
        if hasattr(self, "_service"):
            self._service.draining = True
            self._service.close()
        if hasattr(self, "_model"):
            self._model.__exit__(None, None, None)


def app(settings: Settings) -> Application:
    """For `serve run`. A replica is asked for as many requests as its own queue takes; the rest
    waits at the proxy, as many again, and beyond that has 429."""
    ongoing = settings.slots + settings.queue + settings.sessions
    deployment = Replica.options(  # type: ignore[attr-defined]
        max_ongoing_requests=ongoing,
        max_queued_requests=max(settings.queue, 1),
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=2),
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER,
            request_router_kwargs={"num_fallback_replicas": settings.max_replicas},
        ),
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.slots,
            upscale_delay_s=10,
            downscale_delay_s=300,  # a model takes long to load
        ),
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
    )
    return deployment.bind(settings)
