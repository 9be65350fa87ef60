"""WS /v1/realtime: a conversation in speech, by OpenAI's events."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.server.audio_in import decoded
from mimo_edge.runtime.server.errors import GoneError, Problem, RequestError, problem_of
from mimo_edge.runtime.server.limits import check_text
from mimo_edge.runtime.server.realtime_answer import Answer, transcribe
from mimo_edge.runtime.server.realtime_config import Session
from mimo_edge.runtime.server.realtime_conversation import Conversation, Said
from mimo_edge.runtime.server.realtime_input import InputBuffer, Turn
from mimo_edge.runtime.server.realtime_items import Raw, asked_in, parsed, said_in, text_of
from mimo_edge.runtime.server.realtime_response import ResponseEvents, new_id
from mimo_edge.runtime.server.service import Service
from mimo_edge.runtime.server.speech import voice_name


def routes(service: Service) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        if service.sessions >= service.limits.sessions:
            await socket.close(1013, "too many sessions")
            return
        offered = socket.scope.get("subprotocols", [])
        service.sessions += 1
        try:
            await socket.accept("realtime" if "realtime" in offered else None)
            await Talk(service, socket).run()
        finally:
            service.sessions -= 1

    return router


class Talk:
    """One connection. Everything but the work itself happens in the event loop."""

    def __init__(self, service: Service, socket: WebSocket) -> None:
        self._service, self._socket = service, socket
        self._rate = service.model.sampling_rate
        self._id, self._conversation_id = new_id("sess"), new_id("conv")
        self._session = Session(model=service.name)
        self._conversation = Conversation(service)
        self._input = InputBuffer(self._session, self._rate, service.limits.audio_seconds)
        self._turn_id = new_id("item")  # of the turn that the buffer will become
        self._sending = asyncio.Lock()
        self._answer: Answer | None = None
        self._others: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the client leaves, or says nothing for long."""
        try:
            await self._send("session.created", {"session": self._shown()})
            while True:
                async with asyncio.timeout(self._service.limits.idle_seconds):
                    raw = await self._socket.receive()
                if raw["type"] == "websocket.disconnect":
                    return
                await self._receive(raw.get("text"))
        except (WebSocketDisconnect, GoneError):
            pass
        except TimeoutError:
            await self._socket.close(1001, "idle")
        finally:
            await self._leave()

    async def _receive(self, text: str | None) -> None:
        event_id = None
        try:
            event = parsed(text)
            event_id = event.get("event_id")
            kind = event.get("type")
            handler = _HANDLERS.get(kind) if isinstance(kind, str) else None
            if handler is None:
                known = ", ".join(_HANDLERS)
                raise RequestError(
                    f"There is no event {str(kind)[:64]!r} here; there are: {known}.",
                    code="unknown_event",
                    param="type",
                )
            await handler(self, event)
        except (WebSocketDisconnect, GoneError):
            raise
        except Exception as error:
            await self._error(problem_of(error), event_id)

    async def _error(self, problem: Problem, event_id: object = None) -> None:
        error = {
            "type": problem.type,
            "code": problem.code,
            "message": problem.message,
            "param": problem.param,
            "event_id": event_id if isinstance(event_id, str) else None,
        }
        await self._send("error", {"error": error})

    async def _send(self, kind: str, content: Raw) -> None:
        text = json.dumps({"type": kind, "event_id": new_id("event"), **content})
        async with self._sending:
            try:
                await self._socket.send_text(text)
            except (RuntimeError, OSError) as error:  # closed meanwhile
                raise GoneError from error

    async def _leave(self) -> None:
        if self._answer is not None:
            await self._answer.leave()
        for task in self._others:
            task.cancel()
        await asyncio.gather(*self._others, return_exceptions=True)

    def _shown(self) -> Raw:
        return {"id": self._id, "object": "realtime.session", **self._session.model_dump()}

    # what a client may send

    async def _update(self, event: Raw) -> None:
        session = self._session.updated(event.get("session"))
        voice = voice_name(session.audio.output.voice)
        self._service.voices.get(voice, "session.audio.output.voice")
        if session.instructions:
            check_text(session.instructions, self._service.limits.prompt, "session.instructions")
        if session.style:
            check_text(session.style, self._service.limits.text, "session.style")
        detector = session.audio.input != self._session.audio.input
        self._session = session
        if detector:
            self._input.configure(session)
        await self._send("session.updated", {"session": self._shown()})

    async def _append(self, event: Raw) -> None:
        for turn in self._input.append(decoded(text_of(event, "audio"), "audio")):
            await self._turn(turn)

    async def _turn(self, turn: Turn) -> None:
        milliseconds = round(turn.at * 1000)
        place = {"item_id": self._turn_id}
        if turn.wav is None:
            began = {"audio_start_ms": milliseconds, **place}
            await self._send("input_audio_buffer.speech_started", began)
            if self._session.can_be_interrupted:
                await self._stop("turn_detected")
            return
        stopped = {"audio_end_ms": milliseconds, **place}
        await self._send("input_audio_buffer.speech_stopped", stopped)
        await self._commit_turn(turn.wav)
        if self._session.answers_itself:
            await self._stop("turn_detected")
            self._begin(self._session, self._conversation)

    async def _commit(self, event: Raw) -> None:
        await self._commit_turn(self._input.take())

    async def _commit_turn(self, wav: Floats) -> None:
        said = Said(self._turn_id, wav=wav)
        self._turn_id = new_id("item")
        place = {"item_id": said.id, "previous_item_id": self._conversation.last}
        await self._send("input_audio_buffer.committed", place)
        await self._add(said)
        if self._session.audio.input.transcription is not None:
            task = asyncio.create_task(transcribe(self._service, self._send, said.id, wav))
            self._others.add(task)
            task.add_done_callback(self._others.discard)

    async def _clear(self, event: Raw) -> None:
        self._input.clear()
        await self._send("input_audio_buffer.cleared", {})

    async def _create_item(self, event: Raw) -> None:
        item = event.get("item")
        if not isinstance(item, dict):
            raise RequestError("item must be a message.", param="item")
        await self._add(said_in(self._service, self._session, item))

    async def _add(self, said: Said) -> None:
        before = self._conversation.last
        self._conversation.add(said)
        content: Raw = {"type": "input_audio", "transcript": None}
        if said.text is not None:
            content = {"type": "input_text", "text": said.text}
        item = {
            "id": said.id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [content],
        }
        place = {"previous_item_id": before, "item": item}
        await self._send("conversation.item.added", place)
        await self._send("conversation.item.done", place)

    async def _truncate(self, event: Raw) -> None:
        end = event.get("audio_end_ms")
        if not isinstance(end, int) or end < 0:
            raise RequestError("audio_end_ms must be 0 or more.", param="audio_end_ms")
        item_id = text_of(event, "item_id")
        await self._stop("client_cancelled")
        self._conversation.truncate(item_id, end / 1000)
        place = {"item_id": item_id, "content_index": 0, "audio_end_ms": end}
        await self._send("conversation.item.truncated", place)

    async def _delete(self, event: Raw) -> None:
        item_id = text_of(event, "item_id")
        self._conversation.remove(item_id)
        await self._send("conversation.item.deleted", {"item_id": item_id})

    async def _create(self, event: Raw) -> None:
        if self._answer is not None and self._answer.going_on:
            raise RequestError(
                "An answer is being made; cancel it or wait for its end.",
                code="conversation_already_has_active_response",
            )
        asked = event.get("response") or {}
        if not isinstance(asked, dict):
            raise RequestError("response must be an object.", param="response")
        for name in asked:
            if name not in (*_OF_RESPONSE, *_IGNORED, "conversation", "input"):
                raise RequestError(f"response.{name} is not offered here.", param=name)
        session = self._session.updated({n: asked[n] for n in _OF_RESPONSE if n in asked})
        self._begin(session, self._asked_of(asked))

    def _asked_of(self, asked: Raw) -> Conversation:
        """The conversation that an answer belongs to: ours, or one of its own."""
        where, items = asked.get("conversation", "auto"), asked.get("input")
        if where not in ("auto", "none"):
            raise RequestError("conversation is auto or none.", param="conversation")
        if items is not None and where == "auto":
            raise RequestError(
                "An answer to an input of its own is not part of the conversation: add "
                '"conversation": "none".',
                param="input",
            )
        if where == "auto":
            return self._conversation
        if items is None:
            return self._conversation.aside(None)
        return self._conversation.aside(
            asked_in(self._service, self._session, self._conversation, items)
        )

    async def _cancel(self, event: Raw) -> None:
        if self._answer is None or not self._answer.going_on:
            raise RequestError("No answer is being made.", code="response_cancel_not_active")
        await self._stop("client_cancelled")

    # answers

    async def _stop(self, reason: str) -> None:
        if self._answer is not None:
            await self._answer.stop(reason)

    def _begin(self, session: Session, conversation: Conversation) -> None:
        kept = conversation is self._conversation
        events = ResponseEvents(
            self._send, session, self._conversation_id if kept else None, conversation.last
        )
        self._answer = Answer(self._service, session, conversation, events)


_OF_RESPONSE = (  # of the session's settings
    *("output_modalities", "instructions", "max_output_tokens", "audio"),
    *("tools", "seed", "style"),
)
_IGNORED = ("metadata", "tool_choice")
_HANDLERS: dict[str, Callable[[Talk, Raw], Coroutine[Any, Any, None]]] = {
    "session.update": Talk._update,
    "input_audio_buffer.append": Talk._append,
    "input_audio_buffer.commit": Talk._commit,
    "input_audio_buffer.clear": Talk._clear,
    "conversation.item.create": Talk._create_item,
    "conversation.item.truncate": Talk._truncate,
    "conversation.item.delete": Talk._delete,
    "response.create": Talk._create,
    "response.cancel": Talk._cancel,
}
