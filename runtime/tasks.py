"""Every task of MiMo-Audio, for programs.

    with MimoAudio.open("bundle") as model:
        print(model.asr("question.wav").result().answer)
        write_audio("hello.wav", model.tts("Hello there.").result().wav, model.sampling_rate)

Each method prepares a `Generation`; `result()` generates it whole, `stream()` as it comes.
"""

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast, overload

import numpy as np
from mimo_edge.runtime.audio.recordings import encode_audio
from mimo_edge.runtime.backends.base import Backend, Ints, Providers
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import ContextError, InputError
from mimo_edge.runtime.chat.checks import as_grid, check_history
from mimo_edge.runtime.chat.conversation import Audio
from mimo_edge.runtime.chat.messages import Messages, as_messages, check_used, is_conversation
from mimo_edge.runtime.chat.presets import PRESETS
from mimo_edge.runtime.chat.prompts import Example, PromptBuilder, Turn
from mimo_edge.runtime.chat.segments import Grid, PromptLayout
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from mimo_edge.runtime.generation.generation import Generation, Result, Started
from mimo_edge.runtime.generation.request import Request
from mimo_edge.runtime.generation.scheduler import Scheduler
from mimo_edge.runtime.options import Options


@dataclass(frozen=True)
class Demonstration:
    """One example of in-context speech-to-speech."""

    input_audio: Audio
    output_audio: Audio
    transcript: str  # of the output


class MimoAudio:
    """A bundle on a backend, with one method per task.

    It may be used from several threads: `scheduler` does the work of all of them. Audio is a path,
    the bytes of a file, or an array [N]; an array has the sampling rate that is given with it, or
    else the model's own (`sampling_rate`). Codes [K, T] that `encode` gave are audio, too.
    """

    def __init__(self, backend: Backend, slots: int | None = None, *, reuse: bool = True) -> None:
        self.backend = backend
        model, self.member = backend.bundle.model, backend.bundle.member
        self.tokenizer = TextTokenizer.of_bundle(backend.bundle)
        self.layout = PromptLayout(model.group_size, model.n_q, model.empty_codes)
        self.prompts = PromptBuilder(self.tokenizer, self.layout)
        self.scheduler = Scheduler(backend, self.tokenizer.special.empty, slots, reuse=reuse)

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        backend: str = "ort-cpu",
        *,
        providers: Providers | None = None,
        session_options: Mapping[str, str] | None = None,
        threads: int | None = None,
        slots: int | None = None,
        reuse: bool = True,
        verify: bool = True,
        engines: str | Path | None = None,
        trust_engines: bool = False,
    ) -> Self:
        """Open a bundle: see `Bundle.open`, `open_backend` and `Scheduler`."""
        opened = open_backend(
            backend,
            Bundle.open(bundle, verify=verify),
            threads,
            providers=providers,
            session_options=session_options,
            engines=None if engines is None else Path(engines),
            trust_engines=trust_engines,
        )
        return cls(opened, slots, reuse=reuse)

    @property
    def sampling_rate(self) -> int:
        """Hz, of every wav that comes out, and of arrays that come without a rate."""
        return self.backend.bundle.model.sampling_rate

    def encode(self, audio: Audio, sampling_rate: int | None = None) -> Ints:
        """Audio -> codes [K, T], whole patches. Raises AudioError, and ContextError for what no
        prompt can hold."""
        return encode_audio(self.scheduler.audio, audio, sampling_rate)

    @overload
    def transcribe(
        self,
        audio: Audio,
        *,
        language: str | None = None,
        sampling_rate: int | None = None,
        options: Options = Options(),
    ) -> str: ...

    @overload
    def transcribe(
        self,
        audio: list[Audio],
        *,
        language: str | None = None,
        sampling_rate: int | None = None,
        options: Options = Options(),
    ) -> list[str]: ...

    def transcribe(
        self,
        audio: Audio | list[Audio],
        *,
        language: str | None = None,
        sampling_rate: int | None = None,
        options: Options = Options(),
    ) -> str | list[str]:
        """What is said in a recording, or in each of several, which share steps. For `language` see
        `asr`."""

        def prepared(one: Audio) -> Generation:
            return self.asr(one, options, language=language, sampling_rate=sampling_rate)

        if not isinstance(audio, list):
            return prepared(audio).result().answer
        return [result.answer for result in self.results(map(prepared, audio))]

    def results(self, generations: Iterable[Generation]) -> Iterator[Result]:
        """The answers of several generations, in their order.

        As many as there are slots share steps. Each is prepared only when its turn is near.
        """
        started: deque[tuple[Generation, Started]] = deque()
        try:
            for generation in generations:
                if len(started) == self.scheduler.slots:
                    first, steps = started.popleft()
                    yield first.result(steps)
                started.append((generation, generation.start()))
            while started:
                first, steps = started.popleft()
                yield first.result(steps)
        finally:
            for _, left in started:
                left.steps.cancel()

    def asr(
        self,
        audio: Audio,
        options: Options = Options(),
        *,
        language: str | None = None,
        sampling_rate: int | None = None,
    ) -> Generation:
        """Transcribe speech. `language` is for MiMo-V2.5-ASR: auto, chinese or english."""
        tag = self.member.tag(language)
        prompt = self.prompts.asr(
            self.encode(audio, sampling_rate),
            rng=random.Random(options.seed),
            template=options.template,
            language=language,
            tag=tag,
        )
        return self._generation("asr", prompt, options)

    def tts(
        self,
        text: str,
        *,
        instruction: str | None = None,
        natural: bool = False,
        voice: Audio | None = None,
        options: Options = Options(),
    ) -> Generation:
        """Speak a text: plainly, in the style of `instruction`, or as the text itself asks
        (`natural`); the latter two can copy a `voice`."""
        self.member.check_task("tts")
        if natural and instruction is not None:
            raise InputError("natural says that the text holds the style; drop the instruction")
        if voice is not None and not natural and instruction is None:
            raise InputError(
                "a voice is used only with an instruction or with natural: the model knows no "
                'plain prompt with a voice. Add an instruction such as "in a calm voice".'
            )
        styled = natural or instruction is not None
        prompt = self.prompts.tts(
            text,
            rng=random.Random(options.seed),
            instruction=instruction,
            natural=natural,
            voice=None if voice is None else self.encode(voice),
            template=options.template,
        )
        return self._generation("tts", prompt, options, opened=styled)

    def understand(
        self,
        audio: Audio,
        question: str,
        *,
        thinking: bool = False,
        sampling_rate: int | None = None,
        options: Options = Options(),
    ) -> Generation:
        """Answer a question about any audio, in text."""
        self.member.check_task("understand")
        codes = self.encode(audio, sampling_rate)
        prompt = self.prompts.understand(codes, question, thinking=thinking)
        return self._generation("understand", prompt, options, opened=thinking)

    def dialogue(
        self,
        audio: Audio | Messages,
        *,
        system_prompt: str | None = None,
        voice: Audio | None = None,
        history: Grid | Result | None = None,
        sampling_rate: int | None = None,
        options: Options = Options(),
    ) -> Generation:
        """Answer speech with speech: one turn, a whole conversation, or the next turn of `history`
        (a `Result.history`; system prompt and voice are then those of the first turn)."""
        self.member.check_task("dialogue")
        codes = None if voice is None or history is not None else self.encode(voice)
        if is_conversation(audio):
            turns = self._turns("dialogue", audio, history)
            prompt = self.prompts.dialogue_turns(turns, system_prompt=system_prompt, voice=codes)
        else:
            prompt = self.prompts.dialogue(
                self.encode(cast(Audio, audio), sampling_rate),
                system_prompt=system_prompt,
                voice=codes,
                continues=history is not None,
            )
        return self._generation("dialogue", prompt, options, history=history)

    def speech_to_text(
        self,
        audio: Audio | Messages,
        *,
        thinking: bool = False,
        history: Grid | Result | None = None,
        sampling_rate: int | None = None,
        options: Options = Options(),
    ) -> Generation:
        """Answer speech with text: one turn, a conversation, or the next turn of `history`."""
        self.member.check_task("speech-to-text")
        if is_conversation(audio):
            turns = self._turns("speech-to-text", audio, history)
            prompt = self.prompts.speech_to_text_turns(turns, thinking=thinking)
        else:
            prompt = self.prompts.speech_to_text(
                self.encode(cast(Audio, audio), sampling_rate), thinking=thinking
            )
        return self._generation("speech-to-text", prompt, options, history=history, opened=thinking)

    def chat(
        self,
        text: str | Messages,
        *,
        thinking: bool = False,
        history: Grid | Result | None = None,
        options: Options = Options(),
    ) -> Generation:
        """Answer text with text: one turn, a conversation, or the next turn of `history`."""
        self.member.check_task("chat")
        if isinstance(text, str):
            prompt = self.prompts.chat(text, thinking=thinking)
        else:
            turns = self._turns("chat", text, history)
            prompt = self.prompts.chat_turns(turns, thinking=thinking)
        return self._generation("chat", prompt, options, history=history, opened=thinking)

    def in_context(
        self,
        instruction: str,
        examples: Sequence[Demonstration],
        audio: Audio,
        options: Options = Options(),
        *,
        sampling_rate: int | None = None,
    ) -> Generation:
        """Do to `audio` what the examples show: few-shot speech-to-speech."""
        self.member.check_task("in-context")
        shown = [
            Example(self.encode(e.input_audio), self.encode(e.output_audio), e.transcript)
            for e in examples
        ]
        prompt = self.prompts.in_context(instruction, shown, self.encode(audio, sampling_rate))
        return self._generation("in-context", prompt, options)

    def _turns(self, task: str, messages: Messages, history: Grid | Result | None) -> list[Turn]:
        """The turns of a conversation, checked before the first of them is encoded."""
        if history is not None:
            raise InputError("give a conversation or a history, not both")
        turns = as_messages(messages)
        check_used(task, turns)
        return [
            Turn(m.role, m.text, None if m.audio is None else self.encode(m.audio, m.sampling_rate))
            for m in turns
        ]

    def _generation(
        self,
        task: str,
        prompt: Grid,
        options: Options,
        *,
        history: Grid | Result | None = None,
        opened: bool = False,
    ) -> Generation:
        preset, context = PRESETS[task], self.backend.bundle.model.context
        if (grid := as_grid(history)) is not None:
            check_history(grid, self.backend.bundle.model)
            prompt = np.concatenate((grid, prompt), axis=1)
        patches = prompt.shape[1] // self.layout.group_size
        if patches >= context:
            raise ContextError(
                f"the prompt has {patches} patches and the context holds {context} with the "
                "answer. Shorten the audio or the text, or drop the oldest turns."
            )
        request = Request(
            prompt=prompt,
            text=options.sampling(preset.text, "text"),
            audio=options.sampling(preset.audio, "audio"),
            stop_ids=preset.stop_ids(self.tokenizer.special),
            max_new=options.max_new,
            min_new=options.min_new,
            seed=options.seed,
        )
        return Generation(
            self.scheduler,
            self.tokenizer,
            self.layout,
            request,
            speaks=preset.speaks,
            opened=opened,
            tags=tuple(self.member.languages.values()),
        )

    def __enter__(self) -> Self:
        self.backend.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.scheduler.close()
        self.backend.__exit__(kind, error, trace)
