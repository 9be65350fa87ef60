"""The answers of a realtime session: each is made by a task of its own, and can be ended."""

import asyncio
from collections.abc import Iterator
from typing import Any

from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.generation.generation import Event, Result
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.server.errors import GoneError, RequestError, problem_of
from mimo_edge.runtime.server.prepared import Prepared
from mimo_edge.runtime.server.realtime_config import Session
from mimo_edge.runtime.server.realtime_conversation import Conversation
from mimo_edge.runtime.server.realtime_response import ResponseEvents, Send, Status
from mimo_edge.runtime.server.service import Service
from mimo_edge.runtime.server.speech import new_seed, usage
from mimo_edge.runtime.server.work import Work, working


class Answer:
    """One answer, from its first event until it is part of the conversation."""

    def __init__(
        self, service: Service, session: Session, conversation: Conversation, events: ResponseEvents
    ) -> None:
        self._service, self._session = service, session
        self._conversation, self._events = conversation, events
        self._stopped = ""  # why it should end
        self._work: Work[Event] | None = None
        self._task = asyncio.create_task(self._respond())

    @property
    def going_on(self) -> bool:
        """Whether it is being made."""
        return not self._task.done()

    async def stop(self, reason: str) -> None:
        """End it where it is, and wait until that is part of the conversation."""
        if not self.going_on:
            return
        self._stopped = reason
        if self._work is not None:
            self._work.interrupt()
        await asyncio.gather(self._task, return_exceptions=True)

    async def leave(self) -> None:
        """End it: nobody is there any more."""
        if self._work is not None:
            self._service.metrics.cancellations.inc()
            self._work.cancel(GoneError())
        await asyncio.gather(self._task, return_exceptions=True)

    async def _respond(self) -> None:
        try:
            await self._events.begin()
            await self._generate()
        except GoneError:
            pass
        except Exception as error:
            await self._events.fail(problem_of(error))

    async def _generate(self) -> None:
        made: list[Prepared] = []
        session, events = self._session, self._events
        seed = new_seed(session.seed)

        def produce(work: Work[Event]) -> Iterator[Event]:
            made.append(self._conversation.prepare(session, seed))
            yield from made[0].stream(work)

        result: Result | None = None
        seconds = self._service.limits.seconds
        async with working(self._service, produce) as work:
            self._work = work
            if self._stopped:
                work.interrupt()
            try:
                async with asyncio.timeout(seconds):
                    async for event in work:
                        if not self._stopped:
                            await events.happened(event, self._service.model.sampling_rate)
                        result = event.result or result
            except TimeoutError:
                raise RequestError(
                    f"The answer took longer than {seconds:g} s.", status=504
                ) from None
            finally:
                self._work = None
        assert result is not None  # the last event of every stream
        self._conversation.answer(events.item_id, made[0], result)
        status: Status = "completed" if result.stopped else "incomplete"
        details: dict[str, Any] = {"type": status}
        if self._stopped:
            status, details = "cancelled", {"type": "cancelled", "reason": self._stopped}
            self._service.metrics.cancellations.inc()
            if session.speaks:  # nobody has heard the rest
                self._conversation.truncate(events.item_id, events.seconds)
        elif not result.stopped:
            details["reason"] = "max_output_tokens"
        group = self._service.model.layout.group_size
        await events.end(status, details, usage(made[0].generation, result, group))


async def transcribe(service: Service, send: Send, item_id: str, wav: Floats) -> None:
    """What the user has said, beside the answer; it may fail alone."""
    place = {"item_id": item_id, "content_index": 0}
    kind = "conversation.item.input_audio_transcription"

    def produce(work: Work[Result]) -> Iterator[Result]:
        options = Options(max_new=service.limits.patches)
        yield work.result(service.model.asr(wav, options))

    try:
        async with working(service, produce) as work:
            async for result in work:
                heard = {"type": "duration", "seconds": len(wav) / service.model.sampling_rate}
                text = {"transcript": result.answer, "usage": heard}
                await send(f"{kind}.completed", {**place, **text})
    except GoneError:
        pass
    except Exception as error:
        problem = problem_of(error)
        said = {"type": problem.type, "code": problem.code, "message": problem.message}
        await send(f"{kind}.failed", {**place, "error": said})
