"""A prepared answer: it is generated when asked for, whole (`result`) or as it comes (`stream`)."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.audio.pacing import Chunks, FixedChunks, GrowingChunks
from mimo_edge.runtime.backends.base import AudioPieces, Floats, Ints
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.answer import DECODE_PIECE, answer_text, split_answer
from mimo_edge.runtime.chat.segments import Grid, PromptLayout
from mimo_edge.runtime.chat.tags import TagFilter, without_tags
from mimo_edge.runtime.chat.text_tokenizer import IncrementalDecoder, TextTokenizer
from mimo_edge.runtime.chat.thought import ThoughtStream, split_thinking
from mimo_edge.runtime.generation.request import Request, Step, join_steps
from mimo_edge.runtime.generation.scheduler import Handle

CHUNK_PATCHES = 6  # about a second of speech between two decodes of a windowed stream


@dataclass(frozen=True)
class Timings:
    """Seconds, except where the name says otherwise."""

    total: float
    first_patch: float  # the prefill included
    first_audio: float | None
    patch_median: float | None  # of the patches after the first
    patches: int
    audio_seconds: float
    real_time_factor: float | None  # total per second of speech: below 1 is faster than real time
    overhead_share: float | None  # of a patch, what is spent outside the backend


@dataclass(frozen=True, eq=False)
class Result:
    """A finished answer."""

    text: str  # the whole text channel, as upstream returns it
    answer: str  # without the thinking
    thinking: str
    codes: Ints  # [K, T]
    wav: Floats | None  # [N], None if the task does not speak
    history: Grid  # prompt and answer, for the next turn
    stopped: bool  # ended by itself, not because the length ran out
    seed: int
    timings: Timings


@dataclass(frozen=True, eq=False)
class Event:
    """What became known: a piece of the answer's text or of a thought before it, a piece of sound,
    or, last, the whole result."""

    text: str = ""
    thinking: str = ""
    wav: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    result: Result | None = None


class Source(Protocol):
    """What generates: see `scheduler.Scheduler`."""

    @property
    def audio(self) -> AudioPieces: ...

    def submit(self, request: Request) -> Handle: ...

    def generate(self, request: Request) -> Iterator[Step]: ...

    def load(self, pieces: Sequence[str]) -> None: ...


@dataclass(frozen=True, eq=False)
class Started:
    """A generation that is on its way: see `Generation.start`."""

    steps: Handle
    clock: "_Clock"


class Generation:
    """An answer that can be generated once or more, each time the same for the same seed.

    `speaks`: the task's answer is speech. `opened`: the prompt ends with "<think>", so speech
    starts only after the model says so.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: TextTokenizer,
        layout: PromptLayout,
        request: Request,
        *,
        speaks: bool,
        opened: bool = False,
        tags: tuple[str, ...] = (),
    ) -> None:
        self._source, self._tokenizer, self._layout = source, tokenizer, layout
        self.request, self.speaks, self._opened = request, speaks, opened
        self._tags = tags

    def steps(self) -> Iterator[Step]:
        """The generated patches, as they come. Who stops reading them ends the answer."""
        return self._source.generate(self.request)

    def start(self) -> Started:
        """Begin, and do not wait: `result` or `stream` of what this returns gives the answer.

        Answers that are on their way at the same time share steps.
        """
        clock = self._ready()
        return Started(self._source.submit(self.request), clock)

    def result(self, started: Started | None = None, *, upstream_drop_last: bool = False) -> Result:
        """Generate all, then decode all. For `upstream_drop_last` see `split_answer`."""
        clock = self._ready() if started is None else started.clock
        steps = []
        for step in self.steps() if started is None else started.steps:
            clock.patch(step)
            steps.append(step)
        return self._finish(steps, clock, None, upstream_drop_last)

    def stream(
        self,
        started: Started | None = None,
        *,
        kind: str | None = None,
        chunk: int | None = None,
        lookahead: int | None = None,
        left: int | None = None,
        right: int | None = None,
    ) -> Iterator[Event]:
        """Text and sound while they are generated; the last event carries the result.

        For `kind`, `lookahead`, `left` and `right` see `codec.open_stream`. `chunk` patches are
        collected between decodes; without it a windowed stream takes 6, and a stateful one begins
        with 1 and takes more as playback allows. A smaller lookahead or right overlap sounds
        sooner and less like the whole decode. Sound starts where the prompt says so; should the
        model open speech once more later, `result` keeps only what follows, as upstream does, and a
        stream has sounded already. After a thought, sound starts where the model opens speech, and
        at the end if it never does.
        """
        kind = codec.check_stream(kind, left, right, lookahead)
        chunks = chunks_of(kind, chunk, left, self._layout.group_size)
        decoder: codec.CodecStream = codec.NoSound()
        if self.speaks:
            decoder = codec.open_stream(
                self._source.audio, kind, left=left, right=right, lookahead=lookahead
            )
        try:
            yield from self._sounding(started, decoder, chunks, codec.stream_pieces(kind))
        finally:
            decoder.close()

    def _sounding(
        self,
        started: Started | None,
        decoder: codec.CodecStream,
        chunks: Chunks,
        pieces: Sequence[str],
    ) -> Iterator[Event]:
        rate = self._source.audio.bundle.model.sampling_rate
        clock = self._ready(pieces) if started is None else started.clock
        words = IncrementalDecoder(self._tokenizer)
        untagged, said = TagFilter(self._tags), ThoughtStream(opened=self._opened)
        special = self._tokenizer.special
        speaking, closed = self.speaks and not self._opened, False
        steps: list[Step] = []
        waiting: list[Ints] = []
        held: list[Ints] = []  # speech before it is known whether a sostm comes
        heard: list[Floats] = []

        def decoded(codes: Sequence[Ints]) -> Iterator[Event]:
            began = time.perf_counter()
            wav = decoder.push(np.concatenate(codes, axis=1))
            now = time.perf_counter()
            chunks.decoded(now, len(codes), now - began, len(wav) / rate)
            yield from sounded(wav)

        def sounded(wav: Floats) -> Iterator[Event]:
            if len(wav):
                heard.append(wav)
                clock.sound()
                yield Event(wav=wav)

        def spoken(text: str) -> Iterator[Event]:
            for thinking, answer in said.feed(untagged.feed(text)):
                if thinking or answer:
                    yield Event(text=answer, thinking=thinking)

        for step in self.steps() if started is None else started.steps:
            clock.patch(step)
            chunks.patch(step.seconds)
            steps.append(step)
            if step.text_id == special.sostm:
                speaking, held = self.speaks and not closed, []
            elif step.text_id == special.eostm:
                speaking, closed = False, True
            if step.text_id not in special.speech_tokens and not step.stopped:
                yield from spoken(words.feed(step.text_id))
            if step.codes is not None and speaking:
                waiting.append(step.codes)
            elif step.codes is not None and self.speaks and not closed:
                held.append(step.codes)
            if len(waiting) >= chunks.wanted:
                yield from decoded(waiting)
                waiting = []
        while held:  # none came: all of it was speech
            taken, held = held[: chunks.wanted], held[chunks.wanted :]
            yield from decoded(taken)
        yield from sounded(decoder.finish(np.concatenate(waiting, axis=1) if waiting else None))
        yield from spoken(words.finish())
        for thinking, answer in (*said.feed(untagged.finish()), said.finish()):
            if thinking or answer:
                yield Event(text=answer, thinking=thinking)
        wav = np.concatenate(heard) if heard else np.zeros(0, np.float32)
        yield Event(result=self._finish(steps, clock, wav, False))

    def _ready(self, decoding: Sequence[str] = ("tokenizer_decoder",)) -> "_Clock":
        """Load what is needed, `decoding` for the sound of it; then start the clock."""
        pieces = ["patch_encoder", "backbone"]
        if self.speaks:
            pieces += ["patch_decoder", *decoding]
        self._source.load(pieces)
        return _Clock(self._source.audio.bundle.model.sampling_rate)

    def _finish(
        self, steps: list[Step], clock: "_Clock", heard: Floats | None, upstream_drop_last: bool
    ) -> Result:
        layout, special = self._layout, self._tokenizer.special
        grid = join_steps(steps, layout.empty_codes, layout.group_size)
        stopped = bool(steps) and steps[-1].stopped
        answer = split_answer(
            grid, layout, special, stopped=stopped, upstream_drop_last=upstream_drop_last
        )
        # upstream's text has a token's place inside a character that speech has split; ours has not
        words = self._tokenizer.decode(i for i in answer.text_ids if i not in special.speech_tokens)
        thinking, rest = split_thinking(without_tags(words, self._tags), opened=self._opened)
        wav = heard
        if not self.speaks:
            wav = None
        elif wav is None:
            wav = codec.decode(self._source.audio, answer.codes)
            clock.sound()
        return Result(
            text=without_tags(answer_text(answer.text_ids, self._tokenizer), self._tags),
            answer=rest,
            thinking=thinking,
            codes=answer.codes,
            wav=wav,
            history=np.concatenate((self.request.prompt, grid), axis=1),
            stopped=stopped,
            seed=self.request.seed,
            timings=clock.timings(0 if wav is None else len(wav)),
        )


def chunks_of(kind: str, chunk: int | None, left: int | None, group_size: int) -> Chunks:
    """How many patches each decode takes. Raises InputError for what is too few or too many."""
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk must be at least 1 patch, not {chunk}; leave it out")
    if kind == codec.STATEFUL:
        return GrowingChunks() if chunk is None else FixedChunks(chunk)
    chunk = CHUNK_PATCHES if chunk is None else chunk
    window = (codec.LEFT_OVERLAP if left is None else left) + chunk * group_size
    if window > DECODE_PIECE:
        raise InputError(
            f"left overlap and chunk make {window} frames to decode at once, of at most "
            f"{DECODE_PIECE}; the defaults are 250 frames and 6 patches of 4 frames"
        )
    return FixedChunks(chunk)


class _Clock:
    def __init__(self, sampling_rate: int) -> None:
        self._rate = sampling_rate
        self._start = time.perf_counter()
        self._first_audio: float | None = None
        self._patches: list[Step] = []

    def patch(self, step: Step) -> None:
        self._patches.append(step)

    def sound(self) -> None:
        if self._first_audio is None:
            self._first_audio = time.perf_counter() - self._start

    def timings(self, samples: int) -> Timings:
        total, later = time.perf_counter() - self._start, self._patches[1:]
        seconds = samples / self._rate
        took = sum(step.seconds for step in later)
        inside = sum(step.backend_seconds for step in later)
        return Timings(
            total=total,
            first_patch=self._patches[0].seconds if self._patches else 0.0,
            first_audio=self._first_audio,
            patch_median=statistics.median(s.seconds for s in later) if later else None,
            patches=len(self._patches),
            audio_seconds=seconds,
            real_time_factor=total / seconds if seconds else None,
            overhead_share=1 - inside / took if took else None,
        )
