"""POST /v1/audio/speech: a text is read aloud."""

import base64
import secrets
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from fastapi import APIRouter
from mimo_edge.runtime.generation.generation import Generation, Result
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.formats import MEDIA_TYPES, open_encoder
from mimo_edge.runtime.server.limits import check_text
from mimo_edge.runtime.server.response import EVENTS, WorkResponse, event
from mimo_edge.runtime.server.service import Service
from mimo_edge.runtime.server.work import Work
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

Seed = Annotated[int, Field(ge=0, lt=1 << 64, description="Same seed, same answer.")]


class VoiceId(BaseModel):
    """A voice by its id, which is its name."""

    model_config = ConfigDict(extra="forbid")
    id: str


class SpeechRequest(BaseModel):
    """OpenAI's fields, and below them our own."""

    model_config = ConfigDict(extra="forbid")
    input: str
    model: str = ""
    voice: str | VoiceId = "default"
    instructions: str | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    natural: bool = Field(default=False, description="The text itself says what is spoken and how.")
    seed: Seed | None = None
    temperature: float | None = None
    max_patches: int | None = Field(default=None, ge=1, description="Of 160 ms each.")


def new_seed(given: int | None) -> int:
    """What was asked for, or one that nobody had."""
    return secrets.randbelow(1 << 32) if given is None else given


def voice_name(voice: str | VoiceId) -> str:
    """Either way to name a voice."""
    return voice if isinstance(voice, str) else voice.id


def usage(generation: Generation, result: Result, group_size: int) -> dict[str, int]:
    """Tokens, which here are patches."""
    read = generation.request.prompt.shape[1] // group_size
    made = result.timings.patches
    return {"input_tokens": read, "output_tokens": made, "total_tokens": read + made}


def routes(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post(
        "/v1/audio/speech",
        response_class=Response,
        responses={200: {"content": {name: {} for name in (*MEDIA_TYPES.values(), EVENTS)}}},
    )
    async def speech(request: SpeechRequest) -> Response:
        """Read a text aloud; the sound is sent as it comes."""
        if request.speed != 1.0:
            raise RequestError("speed can only be 1: the model has no other.", param="speed")
        check_text(request.input, service.limits.text, "input")
        if request.instructions:
            check_text(request.instructions, service.limits.text, "instructions")
        seed = new_seed(request.seed)
        open_encoder(request.response_format, service.model.sampling_rate)  # or refuse at once
        events = request.stream_format == "sse"
        return WorkResponse(
            service,
            _as_events(service, request, seed) if events else as_audio(service, request, seed),
            EVENTS if events else MEDIA_TYPES[request.response_format],
            {"X-Seed": str(seed)},
        )

    return router


def _generation(service: Service, request: SpeechRequest, seed: int) -> Generation:
    most = service.limits.patches
    return service.model.tts(
        request.input,
        instruction=request.instructions or None,
        natural=request.natural,
        voice=service.voices.get(voice_name(request.voice)),
        options=Options(
            seed=seed,
            max_new=min(request.max_patches or most, most),
            temperature=request.temperature,
        ),
    )


Produce = Callable[[Work[bytes]], Iterator[bytes]]


def as_audio(service: Service, request: SpeechRequest, seed: int) -> Produce:
    """The bytes of its file, as they come."""

    def produce(work: Work[bytes]) -> Iterator[bytes]:
        encoder = open_encoder(request.response_format, service.model.sampling_rate)
        for happened in work.stream(_generation(service, request, seed)):
            if data := encoder.push(happened.wav) if len(happened.wav) else b"":
                yield data
        yield encoder.finish()

    return produce


def _as_events(service: Service, request: SpeechRequest, seed: int) -> Produce:
    def delta(data: bytes) -> bytes:
        audio = base64.b64encode(data).decode()
        return event({"type": "speech.audio.delta", "audio": audio})

    def produce(work: Work[bytes]) -> Iterator[bytes]:
        encoder = open_encoder(request.response_format, service.model.sampling_rate)
        generation = _generation(service, request, seed)
        for happened in work.stream(generation):
            if data := encoder.push(happened.wav) if len(happened.wav) else b"":
                yield delta(data)
            if happened.result is not None:
                if data := encoder.finish():
                    yield delta(data)
                counted = usage(generation, happened.result, service.model.layout.group_size)
                yield event({"type": "speech.audio.done", "usage": counted})

    return produce
