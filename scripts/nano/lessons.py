"""What the language model learns from: prompts exactly as the runtime builds them, with answers.

A lesson is one grid [1 + K, P * G]; only what comes after its prompt counts in the loss.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runtime.prompts import PromptBuilder
from runtime.segments import Grid, PromptLayout, pad_codes, streaming_segment, text_segment
from runtime.text_tokenizer import TextTokenizer
from scripts.nano import grammar
from scripts.nano.codes import Coded, Codes
from scripts.nano.sizes import CODEBOOKS, NANO

TASKS = {"asr": 0.15, "tts": 0.37, "dialogue": 0.4, "speech-to-text": 0.05, "chat": 0.03}
# so much of a task is loose words: sentences are soon known by heart
_LOOSE_SHARES = {"asr": 0.45, "tts": 0.75}
LAYOUT = PromptLayout(NANO.language_model["group_size"], len(CODEBOOKS), CODEBOOKS)
MISHEARD = 0.1  # of the codes of a lesson, at most so many are fed wrong


@dataclass(frozen=True, eq=False)
class Lesson:
    """A grid [1 + K, P * G] whose patches from `start` on are the answer."""

    task: str
    grid: Grid
    start: int

    @property
    def patches(self) -> int:
        return self.grid.shape[1] // LAYOUT.group_size


class Teacher:
    """Makes lessons for each task from texts and codes."""

    def __init__(self, tokenizer_folder: Path) -> None:
        self.tokenizer = TextTokenizer.from_folder(tokenizer_folder)
        self.prompts = PromptBuilder(self.tokenizer, LAYOUT)

    def asr(self, heard: Codes, text: str, rng: random.Random) -> Lesson:
        """Write down what is heard."""
        return self._written("asr", self.prompts.asr(heard, rng=rng), text)

    def tts(self, text: str, spoken: Codes, rng: random.Random) -> Lesson:
        """Read a text aloud."""
        return self._spoken("tts", self.prompts.tts(text, rng=rng), text, spoken)

    def dialogue(self, heard: Codes, answer: str, spoken: Codes) -> Lesson:
        """Answer speech with speech."""
        return self._spoken("dialogue", self.prompts.dialogue(heard), answer, spoken)

    def speech_to_text(self, heard: Codes, answer: str) -> Lesson:
        """Answer speech with text."""
        return self._written("speech-to-text", self.prompts.speech_to_text(heard), answer)

    def chat(self, question: str, answer: str) -> Lesson:
        """Answer text with text."""
        return self._written("chat", self.prompts.chat(question), answer)

    def _written(self, task: str, prompt: Grid, text: str) -> Lesson:
        ids = [*self.tokenizer.encode(text), self.tokenizer.special.im_end]
        return self._lesson(task, prompt, text_segment(ids, LAYOUT))

    def _spoken(self, task: str, prompt: Grid, text: str, codes: Codes) -> Lesson:
        """The prompt already ends with the sostm that opens the answer."""
        padded = pad_codes(codes, LAYOUT.group_size)
        ids = self.tokenizer.encode(text)
        answer = streaming_segment(ids, padded, LAYOUT, self.tokenizer.special)
        return self._lesson(task, prompt, answer[:, LAYOUT.group_size :])

    def _lesson(self, task: str, prompt: Grid, answer: Grid) -> Lesson:
        start = prompt.shape[1] // LAYOUT.group_size
        return Lesson(task, np.concatenate([prompt, answer], axis=1), start)


@dataclass
class Library:
    """The clips of one part, by what is said in them."""

    heard: dict[str, list[Codes]] = field(default_factory=dict)
    own: dict[str, list[Codes]] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)  # question -> answer
    loose: set[str] = field(default_factory=set)  # of `own`, what is no sentence

    @classmethod
    def of(cls, coded: Iterable[Coded], part: str) -> "Library":
        """From the clips of `part`."""
        library = cls()
        for item in coded:
            if item.clip.part != part:
                continue
            codes = [item.codes] if item.again is None else [item.codes, item.again]
            library.heard.setdefault(item.clip.text, []).extend(codes)
            if item.clip.own:  # the last frame is mostly padding: nothing to learn to say
                library.own.setdefault(item.clip.text, []).append(item.codes[:, :-1])
        known = {text: sentence.answer for text, sentence in grammar.by_text().items()}
        for text in library.heard:
            answer = known.get(text)
            if answer is not None:
                library.answers[text] = answer
        library.loose = set(library.own) - set(known) - set(known.values())
        return library


class Lessons:
    """An endless course, every batch of which follows from its number alone."""

    _POOL = 4  # batches drawn together and sorted by length, so that little is padding

    def __init__(self, teacher: Teacher, library: Library, batch: int, seed: int) -> None:
        self.teacher, self.library, self.batch, self.seed = teacher, library, batch, seed
        self._loose = sorted(library.loose)
        self._sentences = sorted(set(library.own) - library.loose)
        self._questions = sorted(q for q, a in library.answers.items() if a in library.own)
        self._pool: tuple[int, list[list[Lesson]]] = (-1, [])

    def __getitem__(self, number: int) -> list[Lesson]:
        """The batch of a step."""
        pool, place = divmod(number, self._POOL)
        if self._pool[0] != pool:
            rng = random.Random(f"{self.seed} {pool}")
            drawn = [self.draw(rng) for _ in range(self._POOL * self.batch)]
            drawn.sort(key=lambda lesson: lesson.patches)
            batches = [drawn[i : i + self.batch] for i in range(0, len(drawn), self.batch)]
            rng.shuffle(batches)
            self._pool = (pool, batches)
        return self._pool[1][place]

    def draw(self, rng: random.Random) -> Lesson:
        """One lesson."""
        task = rng.choices(list(TASKS), list(TASKS.values()))[0]
        library, teacher = self.library, self.teacher
        if task in _LOOSE_SHARES:
            loose = self._loose and rng.random() < _LOOSE_SHARES[task]
            text = rng.choice(self._loose if loose else self._sentences)
            if task == "asr":
                return teacher.asr(rng.choice(library.heard[text]), text, rng)
            return teacher.tts(text, rng.choice(library.own[text]), rng)
        question = rng.choice(self._questions)
        answer = library.answers[question]
        if task == "chat":
            return teacher.chat(question, answer)
        heard = rng.choice(library.heard[question])
        if task == "dialogue":
            return teacher.dialogue(heard, answer, rng.choice(library.own[answer]))
        return teacher.speech_to_text(heard, answer)


def collate(lessons: list[Lesson], padding_id: int) -> tuple[Grid, Grid]:
    """Grids side by side [B, 1 + K, P * G], and which patches are answers, bool [B, P].

    Rows are filled up on the right, where a causal model does not look.
    """
    patches = max(lesson.patches for lesson in lessons)
    grids, answers = [], []
    for lesson in lessons:
        filling = text_segment([padding_id] * (patches - lesson.patches), LAYOUT)
        grids.append(np.concatenate([lesson.grid, filling], axis=1))
        place = np.arange(patches)
        answers.append((place >= lesson.start) & (place < lesson.patches))
    return np.stack(grids), np.stack(answers)


def misheard(grid: Grid, seed: int) -> Grid:
    """Grids [B, 1 + K, P * G] with some codes of what is heard and said replaced.

    What the model hears is noisy, and what it says is never quite what it has learned: fed its
    lessons without a fault, it learns rows of codes by heart and is lost after its first own slip.
    """
    rng, codes = np.random.default_rng(seed), grid[:, 1:]
    sizes = np.array(CODEBOOKS)[:, None]
    other = rng.integers(0, sizes, codes.shape)
    share = rng.uniform(0, MISHEARD, (len(grid), 1, 1))
    wrong = (rng.random(codes.shape) < share) & (codes < sizes)  # beyond lies the empty code
    return np.concatenate([grid[:, :1], np.where(wrong, other, codes)], axis=1)
