"""GET, POST and DELETE /v1/audio/voices: the voices that callers may name."""

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile
from mimo_edge.runtime.server.audio_in import wav_of
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.service import Service
from mimo_edge.runtime.server.voices import OWN, Voice
from starlette.concurrency import run_in_threadpool


def routes(service: Service) -> APIRouter:
    """The endpoints."""
    router = APIRouter()

    @router.get("/v1/audio/voices")
    async def voices() -> dict[str, Any]:
        """All voices."""
        kept = [_shown(voice) for voice in service.voices.list()]
        return {"object": "list", "data": kept, "own": list(OWN)}

    @router.post("/v1/audio/voices")
    async def add(
        name: Annotated[str, Form()],
        audio_sample: Annotated[UploadFile | None, File()] = None,
        file: Annotated[UploadFile | None, File()] = None,
    ) -> dict[str, Any]:
        """Take in a recording as a voice."""
        upload = audio_sample or file
        if upload is None:
            raise RequestError("Send the recording as audio_sample.", param="audio_sample")
        data = await upload.read()
        with service.admitted():
            return _shown(await run_in_threadpool(_add, service, name, data))

    @router.delete("/v1/audio/voices/{name}")
    async def remove(name: str) -> dict[str, Any]:
        """Forget a voice."""
        await run_in_threadpool(service.voices.remove, name)
        return {"id": name, "object": "audio.voice", "deleted": True}

    return router


def _add(service: Service, name: str, data: bytes) -> Voice:
    return service.voices.add(name, wav_of(service, data, "audio_sample"))


def _shown(voice: Voice) -> dict[str, Any]:
    return {
        "id": voice.name,
        "object": "audio.voice",
        "name": voice.name,
        "created_at": voice.created,
        "duration": round(voice.seconds, 3),
    }
