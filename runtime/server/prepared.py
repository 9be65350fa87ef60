"""An answer to be: one generation, or a text that is read aloud sentence by sentence."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.generation.generation import Event, Generation, Result
from mimo_edge.runtime.server.sentences import Sentences
from mimo_edge.runtime.server.work import Work

Say = Callable[[str], Generation]  # a sentence read aloud


class Prepared:
    """With `say`, the generation's text is spoken: each sentence when it is whole, while the next
    is being written in another slot."""

    def __init__(self, generation: Generation, say: Say | None = None) -> None:
        self.generation, self._say = generation, say
        self._begun: list[tuple[int, int]] = []  # of each sentence: samples before, characters with
        self._characters = self._samples = 0

    @property
    def read_aloud(self) -> bool:
        """Whether the answer is a text first."""
        return self._say is not None

    def result(self, work: Work) -> Result:
        """In the thread: the whole answer."""
        if self._say is None:
            return work.result(self.generation)
        last = None
        for event in self.stream(work):
            last = event.result
        assert last is not None  # the last event of every stream
        return last

    def stream(self, work: Work) -> Iterator[Event]:
        """In the thread: the answer as it comes. The result of what is read aloud has the sound
        and the codes of all sentences."""
        if self._say is None:
            yield from work.stream(self.generation)
            return
        sentences, spoken = Sentences(), list[Result]()
        wavs = list[Floats]()
        written: Result | None = None

        def say(sentence: str) -> Iterator[Event]:
            assert self._say is not None
            self._begun.append((self._samples, self._characters))
            for event in work.stream(self._say(sentence)):
                if event.result is not None:
                    spoken.append(event.result)
                elif len(event.wav):
                    self._samples += len(event.wav)
                    wavs.append(event.wav)
                    yield Event(wav=event.wav)

        for event in work.stream(self.generation):
            written = event.result or written
            if event.text or event.thinking:
                self._characters += len(event.text)
                yield Event(text=event.text, thinking=event.thinking)
            for sentence in sentences.feed(event.text):
                yield from say(sentence)
        if rest := sentences.finish():
            yield from say(rest)
        assert written is not None
        yield Event(result=_joined(written, spoken, wavs))

    def heard(self, samples: int) -> int:
        """Of a text that is read aloud: the characters of the sentences that had begun by then."""
        return max((ends for begins, ends in self._begun if begins < samples), default=0)


def _joined(written: Result, spoken: list[Result], wavs: list[Floats]) -> Result:
    empty: Ints = np.zeros((len(written.codes), 0), np.int64)
    patches = written.timings.patches + sum(result.timings.patches for result in spoken)
    return replace(
        written,
        codes=np.concatenate((empty, *(result.codes for result in spoken)), axis=1),
        wav=np.concatenate((np.zeros(0, np.float32), *wavs)),
        timings=replace(written.timings, patches=patches),
    )
