"""The language model at work, greedily or as upstream samples, and how its words are scored."""

import random
from collections.abc import Sequence

import numpy as np
import torch

from mimo_ref.generate import Limits, Sampling, generate
from mimo_ref.model import LanguageModel
from runtime import presets
from runtime.answer import Answer, answer_text, split_answer
from runtime.segments import Grid
from scripts.nano import grammar
from scripts.nano.codes import Codes
from scripts.nano.lessons import LAYOUT, Teacher

_LONGEST = 90  # patches of an answer; more is a failure


class Listener:
    """Runs tasks on codes with `mimo_ref`. Sampling is upstream's preset unless `greedy`."""

    def __init__(self, model: LanguageModel, teacher: Teacher, *, greedy: bool = False) -> None:
        self.model, self.teacher, self.greedy = model, teacher, greedy

    def transcribe(self, codes: Codes) -> str:
        """What is said."""
        prompt = self.teacher.prompts.asr(codes, rng=random.Random(0))
        return self.text(self.answer("asr", prompt))

    def read_aloud(self, text: str, seed: int = 0) -> Answer:
        """Text to codes."""
        prompt = self.teacher.prompts.tts(text, rng=random.Random(seed))
        return self.answer("tts", prompt, seed)

    def reply(self, codes: Codes, seed: int = 0) -> Answer:
        """Speech to speech."""
        return self.answer("dialogue", self.teacher.prompts.dialogue(codes), seed)

    def text(self, answer: Answer) -> str:
        """The words of an answer."""
        return answer_text(answer.text_ids, self.teacher.tokenizer)

    def answer(self, task: str, prompt: Grid, seed: int = 0) -> Answer:
        """Generate until a stop token or the longest answer."""
        preset, special = presets.PRESETS[task], self.teacher.tokenizer.special
        stops = frozenset(preset.stop_ids(special))
        limits = Limits(prompt.shape[1] // LAYOUT.group_size + _LONGEST, stop_ids=stops)
        generator = torch.Generator().manual_seed(seed)
        size = 1 + LAYOUT.group_size * LAYOUT.n_q

        def noise(step: int) -> torch.Tensor:
            return torch.rand(size, generator=generator)

        patches = list(
            generate(
                self.model,
                torch.from_numpy(prompt),
                limits,
                noise,
                self._sampling(preset.text),
                self._sampling(preset.audio),
            )
        )
        grid = torch.cat(patches, dim=1).numpy()
        stopped = int(grid[0, -LAYOUT.group_size]) in stops
        return split_answer(grid, LAYOUT, special, stopped=stopped)

    def _sampling(self, preset: presets.Sampling) -> Sampling:
        if self.greedy:
            return Sampling()
        return Sampling(preset.temperature, preset.top_k, preset.top_p)


def error_rate(heard: Sequence[str], said: Sequence[str]) -> float:
    """Word error rate over all pairs: edits by words said."""
    pairs = [(grammar.words(h), grammar.words(s)) for h, s in zip(heard, said, strict=True)]
    return sum(edits(h, s) for h, s in pairs) / max(1, sum(len(s) for _, s in pairs))


def edits(heard: Sequence[str], said: Sequence[str]) -> int:
    """Insertions, deletions and substitutions between two rows of words."""
    row = np.arange(len(said) + 1)
    for i, word in enumerate(heard, start=1):
        previous, row = row, np.empty_like(row)
        row[0] = i
        for j, other in enumerate(said, start=1):
            change = previous[j - 1] + (word != other)
            row[j] = min(change, previous[j] + 1, row[j - 1] + 1)
    return int(row[-1])
