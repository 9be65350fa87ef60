"""Other people's clients, unchanged. `make clients` installs them and runs this."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.write import pcm16
from mimo_edge.runtime.server.service import Streaming
from mimo_edge.runtime.tasks import MimoAudio

from tests.server.conftest import CLIP, QUESTION, Serving, serving

RATE = 24000
TEXT = "The red cup is on the table."
pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def running(nano: MimoAudio) -> Iterator[Serving]:
    with serving(nano, streaming=Streaming(chunk=2), key="right") as server:
        yield server


@pytest.fixture
def reach(running: Serving) -> dict[str, str]:
    return {"base_url": f"{running.url}/v1", "api_key": "right"}


def spoken(path: Any, rate: int = RATE) -> np.ndarray:
    return pcm16(load_audio(path, rate=rate), "x")


def audible(data: bytes) -> bool:
    wav = np.frombuffer(data, "<i2") / 32768
    return len(wav) > RATE / 2 and float(np.sqrt(np.mean(wav**2))) > 0.01


def livekit_frames(pcm: np.ndarray, rate: int = RATE) -> list[Any]:
    from livekit import rtc

    size = rate // 10
    parts = [pcm[i : i + size] for i in range(0, len(pcm), size)]
    return [rtc.AudioFrame(p.tobytes(), rate, 1, len(p)) for p in parts]


@pytest.mark.parametrize("form", ["pcm", "mp3"])
def test_livekit_speaks(reach: dict[str, str], form: str) -> None:
    from livekit.plugins import openai

    async def run() -> bytes:
        tts = openai.TTS(model="nano", voice="alloy", response_format=form, **reach)
        async with tts.synthesize(TEXT) as stream:
            return b"".join([bytes(audio.frame.data) async for audio in stream])

    assert audible(asyncio.run(run()))


def test_livekit_hears(running: Serving, reach: dict[str, str]) -> None:
    from livekit.plugins import openai

    async def run() -> str:
        stt = openai.STT(model="nano", language="en", **reach)
        event = await stt.recognize(livekit_frames(spoken(CLIP)))
        return str(event.alternatives[0].text)

    assert len(asyncio.run(run()).split()) > 3


def test_livekit_writes(running: Serving, reach: dict[str, str]) -> None:
    from livekit.agents.llm import ChatContext
    from livekit.plugins import openai

    async def run() -> str:
        context = ChatContext.empty()
        context.add_message(role="user", content="What is four plus five?")
        async with openai.LLM(model="nano", **reach).chat(chat_ctx=context) as stream:
            said = [c.delta.content async for c in stream if c.delta and c.delta.content]
        return "".join(said)

    assert asyncio.run(run())


def test_livekit_talks(running: Serving, reach: dict[str, str]) -> None:
    """Realtime: the recording is pushed as a microphone would; the server hears its end."""
    import aiohttp
    from livekit.plugins import openai

    async def run() -> tuple[bytes, str]:
        async with aiohttp.ClientSession() as http:
            model = openai.realtime.RealtimeModel(
                model="nano", voice="alloy", http_session=http, **reach
            )
            session = model.session()
            made: asyncio.Queue[Any] = asyncio.Queue()
            session.on("generation_created", made.put_nowait)
            errors: list[Any] = []
            session.on("error", errors.append)
            await session.update_instructions("Be kind.")
            quiet = np.zeros(RATE, "<i2")
            for frame in livekit_frames(np.concatenate((quiet, spoken(QUESTION), quiet))):
                session.push_audio(frame)
            generation = await asyncio.wait_for(made.get(), 30)
            sound, words = b"", ""
            async for message in generation.message_stream:
                async for frame in message.audio_stream:
                    sound += bytes(frame.data)
                async for piece in message.text_stream:
                    words += piece
            await session.aclose()
            await model.aclose()
            assert errors == []
            return sound, words

    sound, words = asyncio.run(run())
    assert audible(sound) and words


async def piped(service: Any, frames: list[Any], last: type, after: int = 1) -> list[Any]:
    """What a Pipecat service makes of frames, up to the last of a kind."""
    from pipecat.frames.frames import EndFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.runner import PipelineRunner
    from pipecat.pipeline.task import PipelineParams, PipelineTask
    from pipecat.processors.frame_processor import FrameProcessor

    seen: list[Any] = []

    class Keep(FrameProcessor):  # type: ignore[misc]
        async def process_frame(self, frame: Any, direction: Any) -> None:
            await super().process_frame(frame, direction)
            seen.append(frame)
            await self.push_frame(frame, direction)
            if sum(isinstance(f, last) for f in seen) == after:
                await task.queue_frame(EndFrame())

    params = PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE)
    task = PipelineTask(Pipeline([service, Keep()]), params=params, cancel_on_idle_timeout=False)
    await task.queue_frames(frames)
    await asyncio.wait_for(PipelineRunner(handle_sigint=False).run(task), 60)
    return seen


def test_pipecat_speaks(reach: dict[str, str]) -> None:
    from pipecat.frames.frames import TTSAudioRawFrame, TTSSpeakFrame, TTSStoppedFrame
    from pipecat.services.openai.tts import OpenAITTSService

    async def run() -> bytes:
        settings = OpenAITTSService.Settings(model="nano", voice="alloy")
        service = OpenAITTSService(settings=settings, **reach)
        seen = await piped(service, [TTSSpeakFrame(TEXT)], TTSStoppedFrame)
        return b"".join(f.audio for f in seen if isinstance(f, TTSAudioRawFrame))

    assert audible(asyncio.run(run()))


def test_pipecat_hears(reach: dict[str, str]) -> None:
    from pipecat.frames.frames import (
        InputAudioRawFrame,
        TranscriptionFrame,
        VADUserStartedSpeakingFrame,
        VADUserStoppedSpeakingFrame,
    )
    from pipecat.services.openai.stt import OpenAISTTService

    async def run() -> str:
        service = OpenAISTTService(settings=OpenAISTTService.Settings(model="nano"), **reach)
        pcm = spoken(CLIP)
        sound = [
            InputAudioRawFrame(pcm[i : i + 2400].tobytes(), RATE, 1)
            for i in range(0, len(pcm), 2400)
        ]
        frames = [VADUserStartedSpeakingFrame(), *sound, VADUserStoppedSpeakingFrame()]
        seen = await piped(service, frames, TranscriptionFrame)
        return next(str(f.text) for f in seen if isinstance(f, TranscriptionFrame))

    assert len(asyncio.run(run()).split()) > 3


def test_pipecat_talks(running: Serving) -> None:
    from pipecat.frames.frames import (
        InputAudioRawFrame,
        LLMContextFrame,
        TTSAudioRawFrame,
        TTSStoppedFrame,
    )
    from pipecat.processors.aggregators.llm_context import LLMContext
    from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService

    async def run() -> bytes:
        service = OpenAIRealtimeLLMService(
            api_key="right",
            base_url=f"ws://127.0.0.1:{running.port}/v1/realtime",
            settings=OpenAIRealtimeLLMService.Settings(model="nano"),
        )
        quiet = np.zeros(RATE, "<i2")
        pcm = np.concatenate((quiet, spoken(QUESTION), quiet))
        sound = [
            InputAudioRawFrame(pcm[i : i + 2400].tobytes(), RATE, 1)
            for i in range(0, len(pcm), 2400)
        ]
        context = LLMContextFrame(LLMContext([{"role": "user", "content": "Hello."}]))
        seen = await piped(service, [context, *sound], TTSStoppedFrame)
        return b"".join(f.audio for f in seen if isinstance(f, TTSAudioRawFrame))

    assert audible(asyncio.run(run()))


def test_schemathesis_finds_no_fault(running: Serving) -> None:
    """Fuzzed from the OpenAPI document: no status of 500 and above, only what is documented."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, settings
    from schemathesis.checks import not_a_server_error

    headers = {"Authorization": "Bearer right"}
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json", headers=headers)

    quick = settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )
    called = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @quick
        def fuzz(case: Any) -> None:
            nonlocal called
            called += 1
            response = case.call(headers=headers, timeout=60)
            case.validate_response(response, checks=[not_a_server_error])

        from hypothesis import given

        given(operation.as_strategy())(fuzz)()
    assert called > 100
    running.idle()
