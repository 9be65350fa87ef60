"""An answer of so many patches, whole and as a stream: from patches to sound."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.audio.pacing import GrowingChunks, rehearse
from mimo_edge.runtime.audio.player import Player
from mimo_edge.runtime.backends.base import AudioPieces, Backend, Ints
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.generation.sampling import Noise, sample
from mimo_edge.scripts.benchmark.stages import Speaking

REHEARSED = 100  # patches: 16 seconds
_TEXT = Sampling(0.6, top_p=0.95)
_CLEAR = np.float32(100.0)  # above every score: the text id that a speaking model is sure of


@dataclass(frozen=True)
class Answer:
    """Seconds. `rtf` is time over the sound's length, `loop_rtf` without the codec."""

    patches: int
    sound: float
    whole: float
    whole_rtf: float
    loop_rtf: float
    streamed: float
    streamed_rtf: float
    first_sound: float  # of the stream, its prompt included
    underruns: int


def speak(backend: Backend, prompt: int, patches: int) -> Answer:
    """Say the same nonsense twice. Text ids are drawn as in an answer, and speech always follows:
    what a model that is trained to speak does."""
    model = backend.bundle.model
    sound = patches * model.group_size * model.samples_per_frame / model.sampling_rate
    begin = time.perf_counter()
    codes = list(_patches(backend, prompt, patches))
    loop = time.perf_counter() - begin
    together = np.concatenate(codes, axis=-1)
    backend.decode(together[None], np.array([together.shape[-1]], np.int64))
    whole = time.perf_counter() - begin
    streamed, player = _stream(backend, prompt, patches)
    return Answer(
        patches=patches,
        sound=sound,
        whole=whole,
        whole_rtf=whole / sound,
        loop_rtf=loop / sound,
        streamed=streamed,
        streamed_rtf=streamed / sound,
        first_sound=player.first_sound or 0.0,
        underruns=len(player.underruns),
    )


def _patches(backend: Backend, prompt: int, patches: int) -> Iterator[Ints]:
    """Codes [K, G], one patch after the other."""
    speaking = Speaking(backend.new_rows, backend.bundle, 1)
    noise = Noise(0)
    try:
        speaking.prefill(prompt)
        for number in range(patches):
            scores = speaking.step()[0].copy()
            scores[0] = scores.max() + _CLEAR
            sample(scores, float(noise(number, 1)[0]), _TEXT, ())
            yield speaking.draw()[0].T
    finally:
        speaking.close()


def _stream(backend: Backend, prompt: int, patches: int) -> tuple[float, Player]:
    """Seconds of the whole stream, and who heard it."""
    rate, chunks, player = backend.bundle.model.sampling_rate, GrowingChunks(), Player()
    decoder = codec.open_stream(backend)
    waiting: list[Ints] = []
    begin = before = time.perf_counter()
    try:
        for number, codes in enumerate(_patches(backend, prompt, patches), start=1):
            now = time.perf_counter()
            if number > 1:  # the first has read the prompt, too
                chunks.patch(now - before)
            waiting.append(codes)
            if len(waiting) >= chunks.wanted or number == patches:
                together = np.concatenate(waiting, axis=-1)
                last = number == patches
                wav = decoder.finish(together) if last else decoder.push(together)
                after = time.perf_counter()
                sound = len(wav) / rate
                player.give(after - begin, sound)
                chunks.decoded(after - begin, len(waiting), after - now, sound)
                waiting = []
            before = time.perf_counter()
        return time.perf_counter() - begin, player
    finally:
        decoder.close()


def rehearse_stream(backend: AudioPieces, patch_seconds: float, start: float) -> Player:
    """A stream whose patches take so long, decoded here and now, to a player in thought."""
    model, rng = backend.bundle.model, np.random.default_rng(0)
    decoder = codec.open_stream(backend)

    def push(patches: int) -> float:
        shape = (model.n_q, patches * model.group_size)
        return len(decoder.push(rng.integers(0, min(model.empty_codes), shape)))

    def decode(patches: int, taken: int) -> tuple[float, float]:
        began = time.perf_counter()
        samples = push(patches)
        return time.perf_counter() - began, samples / model.sampling_rate

    try:
        push(2)
        decoder.finish()  # loaded, and as new
        return rehearse(GrowingChunks(), REHEARSED, patch_seconds, decode, start)
    finally:
        decoder.close()
