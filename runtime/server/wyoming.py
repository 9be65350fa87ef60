"""A Wyoming server beside the HTTP one: speech to text and text to speech for Home Assistant.

The protocol knows no keys: whoever reaches the port may use it.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from mimo_edge.runtime.generation.generation import Event as Piece
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.server.errors import GoneError, RequestError, problem_of
from mimo_edge.runtime.server.limits import check_text
from mimo_edge.runtime.server.sentences import Sentences
from mimo_edge.runtime.server.service import Service
from mimo_edge.runtime.server.speech import SpeechRequest, as_audio, new_seed
from mimo_edge.runtime.server.transcriptions import template_of
from mimo_edge.runtime.server.voices import OWN
from mimo_edge.runtime.server.work import Work, working
from mimo_edge.runtime.server.wyoming_events import LINE, field, read_event
from mimo_edge.runtime.server.wyoming_info import info_of
from mimo_edge.runtime.server.wyoming_recording import Recording
from wyoming.asr import Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_write_event
from wyoming.ping import Pong
from wyoming.tts import SynthesizeStopped

_WAITING = 8  # requests of one connection that wait for the one before them
_LINGER = 2.0  # seconds
_ANSWERS = {  # what is asked for: how it is counted
    "transcribe": "wyoming/transcribe",
    "synthesize": "wyoming/synthesize",
}
log = logging.getLogger("mimo_edge.server")
Job = Callable[[], Awaitable[None]]
Texts = asyncio.Queue[str | None]  # sentences, None after the last


class WyomingServer:
    """Connections on a port that is open already. `start` and `stop` in the event loop."""

    def __init__(self, service: Service, sock: socket.socket) -> None:
        self._service, self._sock = service, sock
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take connections."""
        self._server = await asyncio.start_server(self._connected, sock=self._sock, limit=LINE)

    async def stop(self) -> None:
        """End all of them."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            connection = Connection(self._service, reader, writer)
            if len(self._tasks) > self._service.limits.sessions:
                busy = RequestError("Too many connections are open.", status=429)
                await connection.fail(busy)
            else:
                await connection.run()
        except (OSError, GoneError, asyncio.CancelledError):
            pass  # the client left, or the server ends
        finally:
            self._tasks.discard(task)
            writer.close()


class Connection:
    """One client. It is read while its requests are answered, one after the other, so that one
    that leaves is noticed. An error ends it: Home Assistant opens one for each request, and waits
    for ever on one that only says so."""

    def __init__(
        self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._service, self._reader, self._writer = service, reader, writer
        self._sending = asyncio.Lock()
        self._jobs: asyncio.Queue[Job] = asyncio.Queue(_WAITING)
        self._language: str | None = None
        self._recording: Recording | None = None
        self._sentences: Sentences | None = None
        self._texts = Texts()
        self._characters = 0

    async def run(self) -> None:
        """Until the client leaves, says nothing for long, or something fails."""
        reading, answering = (asyncio.create_task(w()) for w in (self._read, self._answer))
        try:
            await asyncio.wait((reading, answering), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, answering):
                task.cancel()
            ended = await asyncio.gather(reading, answering, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                await self.fail(error)
                return

    async def fail(self, error: Exception) -> None:
        """Say what went wrong. What the client still sends is read and dropped for a moment: a
        connection closed upon unread bytes would take the answer with it."""
        if isinstance(error, OSError | GoneError):
            return
        problem = problem_of(error)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER):
                await self._send(Error(problem.message, problem.code))
                self._writer.write_eof()
                while await self._reader.read(LINE):
                    pass

    async def _send(self, *events: Eventable) -> None:
        async with self._sending:
            for event in events:
                await async_write_event(event.event(), self._writer)

    async def _read(self) -> None:
        limits = self._service.limits
        while True:
            try:
                async with asyncio.timeout(limits.idle_seconds):
                    event = await read_event(self._reader)
            except TimeoutError:
                return
            if event is None:
                return
            handler = _HANDLERS.get(event.type)
            if handler is not None:  # the protocol says that unknown events are dropped
                await handler(self, event)

    async def _answer(self) -> None:
        seconds = self._service.limits.seconds
        while True:
            job = await self._jobs.get()
            try:
                async with asyncio.timeout(seconds):
                    await job()
            except TimeoutError:
                raise RequestError(
                    f"The request took longer than {seconds:g} s.", status=504, code="timeout"
                ) from None

    def _queue(self, kind: str, job: Job) -> None:
        requests = self._service.metrics.requests

        async def counted() -> None:
            try:
                await job()
            except asyncio.CancelledError:
                self._service.metrics.cancellations.inc()
                raise
            except Exception as error:
                requests.labels(_ANSWERS[kind], str(problem_of(error).status)).inc()
                raise
            requests.labels(_ANSWERS[kind], "200").inc()

        try:
            self._jobs.put_nowait(counted)
        except asyncio.QueueFull:
            raise RequestError(f"{_WAITING} requests wait already.", status=429) from None

    # what a client may send

    async def _describe(self, _: Event) -> None:
        await self._send(info_of(self._service))

    async def _ping(self, event: Event) -> None:
        await self._send(Pong(field(event, "text", str, "")))

    async def _transcribe(self, event: Event) -> None:
        self._language = field(event, "language", str, "") or None

    async def _audio_start(self, event: Event) -> None:
        self._recording = Recording(event, self._service.limits.audio_seconds)

    async def _audio_chunk(self, event: Event) -> None:
        if self._recording is None:
            raise RequestError("audio-start must come before audio-chunk.")
        self._recording.append(event)

    async def _audio_stop(self, _: Event) -> None:
        if self._recording is None:
            raise RequestError("audio-start must come before audio-stop.")
        recording, self._recording = self._recording, None
        language, self._language = self._language, None
        template = template_of(language, 0)
        self._queue("transcribe", lambda: self._hear(recording, template))

    async def _synthesize(self, event: Event) -> None:
        text = field(event, "text", str)
        if self._sentences is not None:  # what was streamed, again, for servers without streaming
            return
        self._check_voice(event)
        check_text(text, self._service.limits.text, "text")
        texts = Texts()
        for said in (text, None):
            texts.put_nowait(said)
        self._queue("synthesize", lambda: self._speak(texts))

    async def _synthesize_start(self, event: Event) -> None:
        if self._sentences is not None:
            raise RequestError("synthesize-start comes twice.")
        self._check_voice(event)
        self._sentences, self._texts, self._characters = Sentences(), Texts(), 0
        texts = self._texts

        async def speak() -> None:
            await self._speak(texts)
            await self._send(SynthesizeStopped())

        self._queue("synthesize", speak)

    async def _synthesize_chunk(self, event: Event) -> None:
        if self._sentences is None:
            raise RequestError("synthesize-start must come before synthesize-chunk.")
        text, most = field(event, "text", str), self._service.limits.prompt
        self._characters += len(text)
        if self._characters > most:
            raise RequestError(f"The text has more than {most} characters; send it in parts.")
        for sentence in self._sentences.feed(text):
            self._texts.put_nowait(sentence)

    async def _synthesize_stop(self, _: Event) -> None:
        if self._sentences is None:
            raise RequestError("synthesize-start must come before synthesize-stop.")
        if rest := self._sentences.finish():
            self._texts.put_nowait(rest)
        self._texts.put_nowait(None)
        self._sentences = None

    def _check_voice(self, event: Event) -> None:
        voice = field(event, "voice", dict, {})
        name = voice.get("name") or "default"
        if name not in OWN:
            raise RequestError(
                f"There is no voice {str(name)[:64]!r} here, only the model's own: others need "
                "instructions, which this protocol has not; /v1/audio/speech takes them.",
                param="voice",
            )
        if field(event, "text_format", str, "text") != "text":
            raise RequestError("text_format can only be text.", param="text_format")

    # answers

    async def _hear(self, recording: Recording, template: str | None) -> None:
        model = self._service.model
        options = Options(template=template, max_new=self._service.limits.patches)

        def produce(work: Work[Piece]) -> Iterator[Piece]:
            yield from work.stream(model.asr(recording.wav(model.sampling_rate), options))

        async with working(self._service, produce) as work:
            await self._send(TranscriptStart())
            async for piece in work:
                if piece.text:
                    await self._send(TranscriptChunk(piece.text))
                if piece.result is not None:
                    await self._send(Transcript(piece.result.answer), TranscriptStop())

    async def _speak(self, texts: Texts) -> None:
        """One sound for all sentences; each is spoken when it is whole."""
        rate = self._service.model.sampling_rate
        await self._send(AudioStart(rate, 2, 1))
        async for text in _until_none(texts):
            request = SpeechRequest(input=text, response_format="pcm")
            produce = as_audio(self._service, request, new_seed(None))
            async with working(self._service, produce) as work:
                async for data in work:
                    if data:
                        await self._send(AudioChunk(rate, 2, 1, data))
        await self._send(AudioStop())


async def _until_none(texts: Texts) -> AsyncIterator[str]:
    while (text := await texts.get()) is not None:
        yield text


_HANDLERS: dict[str, Callable[[Connection, Event], Awaitable[None]]] = {
    "describe": Connection._describe,
    "ping": Connection._ping,
    "transcribe": Connection._transcribe,
    "audio-start": Connection._audio_start,
    "audio-chunk": Connection._audio_chunk,
    "audio-stop": Connection._audio_stop,
    "synthesize": Connection._synthesize,
    "synthesize-start": Connection._synthesize_start,
    "synthesize-chunk": Connection._synthesize_chunk,
    "synthesize-stop": Connection._synthesize_stop,
}
