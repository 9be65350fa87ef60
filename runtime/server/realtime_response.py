"""One answer of a realtime session, as events."""

import base64
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from mimo_edge.runtime.generation.generation import Event
from mimo_edge.runtime.server.errors import Problem
from mimo_edge.runtime.server.formats import Encoder
from mimo_edge.runtime.server.realtime_audio import open_sender
from mimo_edge.runtime.server.realtime_config import Session

Send = Callable[[str, dict[str, Any]], Awaitable[None]]
Status = Literal["completed", "cancelled", "failed", "incomplete"]


def new_id(kind: str) -> str:
    """An id of OpenAI's look."""
    return f"{kind}_{secrets.token_hex(10)}"


class ResponseEvents:
    """Sends the events of one answer, in OpenAI's order. Without a conversation's id it is part of
    none."""

    def __init__(
        self, send: Send, session: Session, conversation_id: str | None, before: str | None
    ) -> None:
        self._send, self._session = send, session
        self._conversation, self._before = conversation_id, before
        self.id, self.item_id = new_id("resp"), new_id("item")
        self.seconds = 0.0  # of sound that was sent
        self._text = ""
        self._item_begun = False
        self._encoder: Encoder | None = None

    async def begin(self) -> None:
        """The answer is being made."""
        await self._send("response.created", {"response": self._response("in_progress", [])})

    async def happened(self, event: Event, rate: int) -> None:
        """A piece of it."""
        if event.text or len(event.wav):
            await self._begin_item()
        kind = "output_audio_transcript" if self._session.speaks else "output_text"
        if event.text:
            self._text += event.text
            await self._send(f"response.{kind}.delta", {**self._place, "delta": event.text})
        if len(event.wav):
            self.seconds += len(event.wav) / rate
            if self._encoder is None:
                self._encoder = open_sender(self._session.audio.output.format.type, rate)
            await self._sound(self._encoder.push(event.wav))

    async def _sound(self, data: bytes) -> None:
        if data:
            delta = base64.b64encode(data).decode()
            await self._send("response.output_audio.delta", {**self._place, "delta": delta})

    async def end(
        self, status: Status, details: dict[str, Any], usage: dict[str, int] | None = None
    ) -> None:
        """It is over."""
        output = []
        if status != "failed" or self._item_begun:
            await self._begin_item()
            output = [self._item("completed" if status == "completed" else "incomplete")]
            await self._end_item(output[0])
        response = self._response(status, output)
        if details:
            response["status_details"] = details
        if usage is not None:
            response["usage"] = usage
        await self._send("response.done", {"response": response})

    async def fail(self, problem: Problem) -> None:
        """It could not be made."""
        error = {"type": problem.type, "code": problem.code, "message": problem.message}
        await self.end("failed", {"type": "failed", "error": error})

    async def _begin_item(self) -> None:
        if self._item_begun:
            return
        self._item_begun = True
        item = self._item("in_progress")
        place = {"response_id": self.id, "output_index": 0}
        await self._send("response.output_item.added", {**place, "item": item})
        await self._of_conversation("added", item)
        await self._send("response.content_part.added", {**self._place, "part": self._part("")})

    async def _end_item(self, item: dict[str, Any]) -> None:
        place, text = self._place, self._text
        if self._session.speaks:
            if self._encoder is not None:
                await self._sound(self._encoder.finish())
            await self._send("response.output_audio.done", place)
            done = {**place, "transcript": text}
            await self._send("response.output_audio_transcript.done", done)
        else:
            await self._send("response.output_text.done", {**place, "text": text})
        await self._send("response.content_part.done", {**place, "part": self._part(text)})
        await self._of_conversation("done", item)
        where = {"response_id": self.id, "output_index": 0}
        await self._send("response.output_item.done", {**where, "item": item})

    async def _of_conversation(self, what: str, item: dict[str, Any]) -> None:
        if self._conversation is not None:
            place = {"previous_item_id": self._before, "item": item}
            await self._send(f"conversation.item.{what}", place)

    @property
    def _place(self) -> dict[str, Any]:
        where = {"response_id": self.id, "item_id": self.item_id}
        return {**where, "output_index": 0, "content_index": 0}

    def _part(self, text: str) -> dict[str, Any]:
        if self._session.speaks:
            return {"type": "audio", "transcript": text}
        return {"type": "text", "text": text}

    def _item(self, status: str) -> dict[str, Any]:
        content: dict[str, Any] = {"type": "output_text", "text": self._text}
        if self._session.speaks:
            content = {"type": "output_audio", "transcript": self._text}
        return {
            "id": self.item_id,
            "object": "realtime.item",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [] if status == "in_progress" else [content],
        }

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        voice = self._session.audio.output.voice
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "output": output,
            "conversation_id": self._conversation,
            "output_modalities": self._session.output_modalities,
            "max_output_tokens": self._session.max_output_tokens,
            "audio": {
                "output": {
                    "format": self._session.audio.output.format.model_dump(),
                    "voice": voice if isinstance(voice, str) else {"id": voice.id},
                }
            },
        }
