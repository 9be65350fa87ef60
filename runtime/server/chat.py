"""POST /v1/chat/completions: conversations in text and in speech."""

import base64
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from mimo_edge.runtime.generation.generation import Event, Generation, Result
from mimo_edge.runtime.server.chat_prompt import prepare
from mimo_edge.runtime.server.chat_request import ChatRequest
from mimo_edge.runtime.server.formats import Encoder, open_encoder
from mimo_edge.runtime.server.response import EVENTS, WorkResponse, event
from mimo_edge.runtime.server.service import Service
from mimo_edge.runtime.server.speech import new_seed, usage
from mimo_edge.runtime.server.work import Work
from starlette.responses import Response


def routes(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        response_class=Response,
        responses={200: {"content": {"application/json": {}, EVENTS: {}}}},
    )
    async def completions(request: ChatRequest) -> Response:
        """Answer a conversation, in text or in speech."""
        request.check()
        seed = new_seed(request.seed)
        completion = _Completion(service, request, seed)
        headers = {"X-Seed": str(seed)}
        if request.stream:
            return WorkResponse(service, completion.stream, EVENTS, headers)
        return WorkResponse(service, completion.whole, "application/json", headers)

    return router


class _Completion:
    """One request: `whole` and `stream` are run in a thread."""

    def __init__(self, service: Service, request: ChatRequest, seed: int) -> None:
        self._service, self._request, self._seed = service, request, seed
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._audio_id = service.spoken.new_id()
        self._created = int(time.time())
        rate = service.model.sampling_rate
        self._encoder: Encoder | None = None
        if request.speaks:
            self._encoder = open_encoder(request.audio_format, rate, "audio.format")

    def whole(self, work: Work[bytes]) -> Iterator[bytes]:
        """The completion as one object."""
        prepared = prepare(self._service, self._request, self._seed)
        result = prepared.result(work)
        message: dict[str, Any] = {"role": "assistant", "content": result.answer, "refusal": None}
        if result.thinking:
            message["reasoning_content"] = result.thinking
        if self._encoder is not None and result.wav is not None:
            data = self._encoder.push(result.wav) + self._encoder.finish()
            kept = self._service.spoken.keep(self._audio_id, result.answer, result.codes)
            message["content"] = None
            message["audio"] = {
                "id": self._audio_id,
                "data": base64.b64encode(data).decode(),
                "transcript": result.answer,
                "expires_at": kept.expires,
            }
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": _reason(result),
            "logprobs": None,
        }
        counted = self._usage(prepared.generation, result)
        said = {**self._head("chat.completion"), "choices": [choice], "usage": counted}
        yield json.dumps(said, ensure_ascii=False).encode()

    def stream(self, work: Work[bytes]) -> Iterator[bytes]:
        """The completion in chunks."""
        prepared = prepare(self._service, self._request, self._seed)
        yield self._chunk({"role": "assistant", "content": None if self._encoder else ""})
        for happened in prepared.stream(work):
            if delta := self._delta(happened):
                yield self._chunk(delta)
            if (result := happened.result) is not None:
                if last := self._last(result):
                    yield self._chunk(last)
                yield self._chunk({}, _reason(result))
                if self._request.include_usage:
                    counted = self._usage(prepared.generation, result)
                    head = self._head("chat.completion.chunk")
                    yield event({**head, "choices": [], "usage": counted})
        yield event("[DONE]")

    def _delta(self, happened: Event) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if happened.thinking:
            delta["reasoning_content"] = happened.thinking
        if self._encoder is None:
            return delta | ({"content": happened.text} if happened.text else {})
        audio: dict[str, Any] = {}
        if happened.text:
            audio["transcript"] = happened.text
        if len(happened.wav) and (data := self._encoder.push(happened.wav)):
            audio["data"] = base64.b64encode(data).decode()
        return delta | ({"audio": {"id": self._audio_id, **audio}} if audio else {})

    def _last(self, result: Result) -> dict[str, Any]:
        if self._encoder is None:
            return {}
        kept = self._service.spoken.keep(self._audio_id, result.answer, result.codes)
        audio: dict[str, Any] = {"id": self._audio_id, "expires_at": kept.expires}
        if data := self._encoder.finish():
            audio["data"] = base64.b64encode(data).decode()
        return {"audio": audio}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        name = self._service.name
        return {"id": self._id, "object": kind, "created": self._created, "model": name}

    def _usage(self, generation: Generation, result: Result) -> dict[str, int]:
        counted = usage(generation, result, self._service.model.layout.group_size)
        return {
            "prompt_tokens": counted["input_tokens"],
            "completion_tokens": counted["output_tokens"],
            "total_tokens": counted["total_tokens"],
        }


def _reason(result: Result) -> str:
    return "stop" if result.stopped else "length"
