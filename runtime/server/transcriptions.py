"""POST /v1/audio/transcriptions: what is said in a recording."""

import json
import random
from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, UploadFile
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.chat.templates import ASR_EN, ASR_ZH
from mimo_edge.runtime.generation.generation import Generation
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.server import subtitles
from mimo_edge.runtime.server.audio_in import wav_of
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.response import EVENTS, WorkResponse, event
from mimo_edge.runtime.server.service import Service
from mimo_edge.runtime.server.speech import usage
from mimo_edge.runtime.server.work import Work
from starlette.responses import Response

Format = Literal["json", "text", "verbose_json", "srt", "vtt"]
_TEMPLATES = {"en": ASR_EN, "english": ASR_EN, "zh": ASR_ZH, "chinese": ASR_ZH}


def routes(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post(
        "/v1/audio/transcriptions",
        response_class=Response,
        responses={200: {"content": {n: {} for n in ("application/json", "text/plain", EVENTS)}}},
    )
    async def transcriptions(
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()] = "",
        language: Annotated[str | None, Form()] = None,
        prompt: Annotated[str | None, Form()] = None,
        response_format: Annotated[Format, Form()] = "json",
        temperature: Annotated[float | None, Form()] = None,
        stream: Annotated[bool, Form()] = False,
        timestamp_granularities: Annotated[
            list[str] | None, Form(alias="timestamp_granularities[]")
        ] = None,
        seed: Annotated[int, Form(ge=0, lt=1 << 64)] = 0,
    ) -> Response:
        """Transcribe a recording."""
        if prompt:
            raise RequestError("prompt: the model takes no hint; leave it out.", param="prompt")
        if timestamp_granularities not in (None, [], ["segment"]):
            raise RequestError(
                "timestamp_granularities: the model gives no times of words, only segments.",
                param="timestamp_granularities",
            )
        if stream and response_format not in ("json", "text"):
            raise RequestError(
                f"A stream has no times, which {response_format} needs; leave out stream.",
                param="stream",
            )
        template = template_of(language, seed)
        options = Options(
            seed=seed,
            temperature=temperature,
            template=template,
            max_new=service.limits.patches,
        )
        asked = _Asked(service, await file.read(), response_format, options, language or "auto")
        if stream:
            return WorkResponse(service, asked.stream, EVENTS)
        kind = "application/json" if "json" in response_format else "text/plain; charset=utf-8"
        return WorkResponse(service, asked.whole, kind)

    return router


def template_of(language: str | None, seed: int) -> str | None:
    """An instruction in the language, or None: one of either."""
    if language is None or language.lower() == "auto":
        return None
    name = language.lower().split("-")[0]
    if name not in _TEMPLATES:
        raise RequestError(
            f"language {language[:20]!r}: the model was trained on en and zh.", param="language"
        )
    return random.Random(seed).choice(_TEMPLATES[name])


class _Asked:
    """One request: whole and stream are run in a thread."""

    def __init__(
        self, service: Service, data: bytes, form: Format, options: Options, language: str
    ) -> None:
        self._service, self._data, self._form = service, data, form
        self._options, self._language = options, language

    def whole(self, work: Work[bytes]) -> Iterator[bytes]:
        """The answer in the format that was asked for."""
        wav = wav_of(self._service, self._data, "file")
        if self._form in ("json", "text"):
            generation = self._generation(wav)
            result = work.result(generation)
            counted = usage(generation, result, self._service.model.layout.group_size)
            said = {"text": result.answer, "usage": {"type": "tokens", **counted}}
            yield (_json(said) if self._form == "json" else f"{result.answer}\n").encode()
            return
        rate = self._service.model.sampling_rate
        parts = subtitles.pieces(wav, rate)
        slots = self._service.model.scheduler.slots
        cues = []
        for first in range(0, len(parts), slots):
            group = parts[first : first + slots]
            results = work.results([self._generation(part.wav) for part in group])
            cues += [
                subtitles.Cue(part.start, part.stop, result.answer)
                for part, result in zip(group, results, strict=True)
            ]
        if self._form == "verbose_json":
            said = subtitles.verbose(cues, len(wav) / rate, self._language)
            yield _json(said).encode()
        else:
            yield (subtitles.srt if self._form == "srt" else subtitles.vtt)(cues).encode()

    def stream(self, work: Work[bytes]) -> Iterator[bytes]:
        """Server-sent events, as the text comes."""
        generation = self._generation(wav_of(self._service, self._data, "file"))
        for happened in work.stream(generation):
            if happened.text:
                yield event({"type": "transcript.text.delta", "delta": happened.text})
            if happened.result is not None:
                group = self._service.model.layout.group_size
                counted = {"type": "tokens", **usage(generation, happened.result, group)}
                text = happened.result.answer
                yield event({"type": "transcript.text.done", "text": text, "usage": counted})

    def _generation(self, wav: Floats) -> Generation:
        return self._service.model.asr(wav, self._options)


def _json(said: object) -> str:
    return json.dumps(said, ensure_ascii=False)
