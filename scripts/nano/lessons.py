"""What the language model learns from: prompts exactly as the runtime builds them, with answers.

A lesson is one grid [1 + K, P * G]; only what comes after its prompt counts in the loss. What
sounds in it, heard or said, is also known word by word.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mimo_edge.runtime.chat.prompts import PromptBuilder
from mimo_edge.runtime.chat.segments import (
    Grid,
    PromptLayout,
    pad_codes,
    streaming_segment,
    text_segment,
)
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from mimo_edge.scripts.nano import grammar
from mimo_edge.scripts.nano.codes import FRAME_SECONDS, Coded, Codes
from mimo_edge.scripts.nano.sizes import CODEBOOKS, NANO
from mimo_edge.scripts.nano.speak import TAIL
from mimo_edge.scripts.nano.timing import WordTiming
from numpy.typing import NDArray

TASKS = {"asr": 0.14, "tts": 0.5, "dialogue": 0.28, "speech-to-text": 0.05, "chat": 0.03}
# so much of a task is loose words: sentences are soon known by heart
_LOOSE_SHARES = {"asr": 0.45, "tts": 0.6}
LAYOUT = PromptLayout(NANO.language_model["group_size"], len(CODEBOOKS), CODEBOOKS)
MISHEARD = 0.1  # of the codes of a lesson, at most so many are fed wrong
SILENT = -1  # in place of the word that sounds in a patch

Words = NDArray[np.int64]  # [P]: the first token of the word that sounds in a patch, or SILENT


@dataclass(frozen=True, eq=False)
class Reading:
    """A text read aloud: its codes, and the second at which each of its words ends."""

    text: str

    codes: Codes
    ends: NDArray[np.float64]  # [W]


@dataclass(frozen=True, eq=False)
class Lesson:
    """A grid [1 + K, P * G] whose patches from `start` on are the answer, with its words [P]."""

    task: str
    grid: Grid
    start: int
    words: Words

    @property
    def patches(self) -> int:
        return self.grid.shape[1] // LAYOUT.group_size


class Teacher:
    """Makes lessons for each task from texts and codes."""

    def __init__(self, tokenizer_folder: Path) -> None:
        self.tokenizer = TextTokenizer.from_folder(tokenizer_folder)
        self.prompts = PromptBuilder(self.tokenizer, LAYOUT)

    def asr(self, heard: Reading, rng: random.Random) -> Lesson:
        """Write down what is heard."""
        prompt = self.prompts.asr(heard.codes, rng=rng)
        return self._written("asr", prompt, heard.text, [heard])

    def tts(self, spoken: Reading, rng: random.Random) -> Lesson:
        """Read a text aloud."""
        return self._spoken("tts", self.prompts.tts(spoken.text, rng=rng), [spoken])

    def dialogue(self, heard: Reading, spoken: Reading) -> Lesson:
        """Answer speech with speech."""
        return self._spoken("dialogue", self.prompts.dialogue(heard.codes), [heard, spoken])

    def speech_to_text(self, heard: Reading, answer: str) -> Lesson:
        """Answer speech with text."""
        prompt = self.prompts.speech_to_text(heard.codes)
        return self._written("speech-to-text", prompt, answer, [heard])

    def chat(self, question: str, answer: str) -> Lesson:
        """Answer text with text."""
        return self._written("chat", self.prompts.chat(question), answer, [])

    def _written(self, task: str, prompt: Grid, text: str, sounds: list[Reading]) -> Lesson:
        ids = [*self.tokenizer.encode(text), self.tokenizer.special.im_end]
        return self._lesson(task, prompt, text_segment(ids, LAYOUT), sounds)

    def _spoken(self, task: str, prompt: Grid, sounds: list[Reading]) -> Lesson:
        """The last reading is the answer; the prompt ends with the sostm that opens it."""
        said = sounds[-1]
        padded = pad_codes(said.codes, LAYOUT.group_size)
        ids = self.tokenizer.encode(said.text)
        answer = streaming_segment(ids, padded, LAYOUT, self.tokenizer.special)
        return self._lesson(task, prompt, answer[:, LAYOUT.group_size :], sounds)

    def _lesson(self, task: str, prompt: Grid, answer: Grid, sounds: list[Reading]) -> Lesson:
        """`sounds` are all its readings, heard and said, in turn."""
        grid = np.concatenate([prompt, answer], axis=1)
        is_speech = grid[0, :: LAYOUT.group_size] == self.tokenizer.special.empty
        words = np.full(len(is_speech), SILENT)
        words[is_speech] = [word for reading in sounds for word in self._words(reading)]
        return Lesson(task, grid, prompt.shape[1] // LAYOUT.group_size, words)

    def _words(self, reading: Reading) -> Words:
        """The word that sounds in the middle of each patch of a reading; none after the last."""
        patches = -(-reading.codes.shape[1] // LAYOUT.group_size)
        names = [self._name(word) for word in reading.text.split()]
        middles = (np.arange(patches) + 0.5) * LAYOUT.group_size * FRAME_SECONDS
        return np.array([*names, SILENT])[np.searchsorted(reading.ends, middles, side="right")]

    def _name(self, word: str) -> int:
        """The token of a word; a capital may only be there because a sentence begins."""
        spellings = (self.tokenizer.encode(f" {form}") for form in (word, word.lower()))
        return min(spellings, key=len)[0]


@dataclass
class Library:
    """The clips of one part, by what is said in them."""

    heard: dict[str, list[Reading]] = field(default_factory=dict)
    own: dict[str, list[Reading]] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)  # question -> answer
    loose: set[str] = field(default_factory=set)  # of `own`, what is no sentence

    @classmethod
    def of(cls, coded: Iterable[Coded], part: str, timing: WordTiming) -> "Library":
        """From the clips of `part`."""
        library = cls()
        for item in coded:
            if item.clip.part != part:
                continue
            text = item.clip.text
            ends = item.clip.room.lead + timing.ends(text, _spoken_seconds(item))
            heard = library.heard.setdefault(text, [])
            heard += [Reading(text, c, ends) for c in (item.codes, item.again) if c is not None]
            if item.clip.own:  # the last frame is mostly padding: nothing to learn to say
                reading = Reading(text, item.codes[:, :-1], ends)
                library.own.setdefault(text, []).append(reading)
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
                return teacher.asr(rng.choice(library.heard[text]), rng)
            return teacher.tts(rng.choice(library.own[text]), rng)
        question = rng.choice(self._questions)
        answer = library.answers[question]
        if task == "chat":
            return teacher.chat(question, answer)
        heard = rng.choice(library.heard[question])
        if task == "dialogue":
            return teacher.dialogue(heard, rng.choice(library.own[answer]))
        return teacher.speech_to_text(heard, answer)


def word_timing(coded: Iterable[Coded]) -> WordTiming:
    """How long words last in nano's own voice, from its clips for training."""
    own = (item for item in coded if item.clip.own and item.clip.part == "train")
    return WordTiming.fit((item.clip.text, _spoken_seconds(item)) for item in own)


def collate(lessons: list[Lesson], padding_id: int) -> tuple[Grid, Grid, Words]:
    """Grids side by side [B, 1 + K, P * G], which patches are answers, bool [B, P], and the words
    that sound in them [B, P].

    Rows are filled up on the right, where a causal model does not look.
    """
    patches = max(lesson.patches for lesson in lessons)
    grids, answers, words = [], [], []
    for lesson in lessons:
        missing = patches - lesson.patches
        filling = text_segment([padding_id] * missing, LAYOUT)
        grids.append(np.concatenate([lesson.grid, filling], axis=1))
        place = np.arange(patches)
        answers.append((place >= lesson.start) & (place < lesson.patches))
        words.append(np.pad(lesson.words, (0, missing), constant_values=SILENT))
    return np.stack(grids), np.stack(answers), np.stack(words)


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


def _spoken_seconds(item: Coded) -> float:
    """From the first sound of a clip to its last, to about a frame."""
    return (item.codes.shape[1] - 1) * FRAME_SECONDS - item.clip.room.lead - TAIL
