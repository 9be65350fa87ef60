"""The clips: a plan that a seed fixes, read aloud once into shards that later stages load.

A shard is an npz of int16 samples with a JSON line per clip. A build that was interrupted goes on
at the first shard that is missing.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from mimo_edge.scripts.nano import grammar, voices
from mimo_edge.scripts.nano.speak import Room, Wav, speak
from mimo_edge.scripts.nano.voices import Reading
from mimo_edge.scripts.progress import StageProgress
from numpy.typing import NDArray

SHARD = 250  # clips
_FULL_SCALE = 32767
# Seconds before the speech. Over a patch's 0.16 s, so that the same sound falls on all its frames:
# with one lead for all, the language model learns rows of codes by heart.
_LEADS = (0.02, 0.18)

Samples = NDArray[np.int16]  # [N]


@dataclass(frozen=True)
class Clip:
    """One reading of one text.

    `part`: "train", "held_out" (new sentence, seen voices) or "new_voice" (new sentence and voice).
    `own`: in nano's own voice and without noise, so that it can be learned as speech to produce.
    """

    part: str
    text: str
    reading: Reading
    room: Room
    own: bool
    seed: int


@dataclass(frozen=True)
class Plan:
    """How much is made. All of it follows from these numbers."""

    sentences: int = 4400
    held_out: int = 180
    readings: int = 2  # of each training sentence, besides nano's own
    own_readings: int = 2  # by nano's own voice; they differ in where the speech begins
    loose: int = 4000  # rows of loose words, each read once by its own and once by another voice
    own_loose: int = 24000  # further rows, by its own voice: with few it learns them by heart
    seed: int = 1


def clips(plan: Plan) -> list[Clip]:
    """Every clip of a plan: the training sentences in an order in which any stretch is a fair
    sample, then loose words, then what is held out."""
    rng = random.Random(plan.seed)
    made: list[Clip] = []

    def add(part: str, text: str, voice: str | None = None) -> None:
        noise = rng.choice((None, None, rng.uniform(20, 40)))
        room = Room(rng.uniform(-6, 3), noise, rng.uniform(*_LEADS))
        reading = voices.draw(rng, voice)
        made.append(Clip(part, text, reading, room, False, rng.getrandbits(32)))

    def add_own(part: str, text: str, room: Room) -> None:
        made.append(Clip(part, text, voices.OWN, room, True, rng.getrandbits(32)))

    train = grammar.choose(plan.sentences, plan.seed, held_out=False)
    for sentence in train:
        for _ in range(plan.readings):
            add("train", sentence.text)
    said = dict.fromkeys(text for s in train for text in (s.text, s.answer) if text is not None)
    for text in said:
        for _ in range(plan.own_readings):
            add_own("train", text, Room(lead=rng.uniform(*_LEADS)))
    rng.shuffle(made)

    for text in grammar.loose_words(plan.loose, plan.seed):
        add("train", text)
        add_own("train", text, Room(lead=rng.uniform(*_LEADS)))
    for text in grammar.loose_words(plan.own_loose, plan.seed + 1):
        add_own("train", text, Room(lead=rng.uniform(*_LEADS)))

    new = grammar.choose(plan.held_out, plan.seed, held_out=True)
    for sentence in new:
        add("held_out", sentence.text)
        add("new_voice", sentence.text, voices.HELD_OUT)
    for sentence in new:
        add_own("held_out", sentence.text, Room())
    return made


def build(work: Path, plan: Plan, workers: int = 1) -> None:
    """Read all clips of the plan aloud into `work`/clips, in so many processes.

    Raises ValueError for another plan's.
    """
    folder = work / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "plan.json"
    if note.exists() and Plan(**json.loads(note.read_text(encoding="utf-8"))) != plan:
        raise ValueError(f"{folder} holds the clips of another plan: choose a new --work folder")
    note.write_text(json.dumps(asdict(plan)) + "\n", encoding="utf-8")
    everything = clips(plan)
    parts = [everything[start : start + SHARD] for start in range(0, len(everything), SHARD)]
    jobs = [(folder / f"{number:04}.npz", part) for number, part in enumerate(parts)]
    missing = [job for job in jobs if not job[0].exists()]
    done, processes = len(jobs) - len(missing), get_context("spawn")
    with processes.Pool(workers) as pool, StageProgress() as progress:
        for _ in pool.imap_unordered(_write_shard, missing):
            done += 1
            progress.report("reading aloud", done, len(jobs), "shards")


def build_held_out(work: Path, plan: Plan) -> None:
    """Read aloud only what a plan holds out, which takes a minute: enough to judge a bundle."""
    folder = work / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    if shards(work):
        return
    chosen = [clip for clip in clips(plan) if clip.part != "train"]
    with StageProgress() as progress:
        for start in range(0, len(chosen), SHARD):
            _write_shard((folder / f"{start // SHARD:04}.npz", chosen[start : start + SHARD]))
            progress.report("reading aloud", start, len(chosen), "clips")


def shards(work: Path) -> list[Path]:
    """The shards that are there."""
    return sorted((work / "clips").glob("[0-9]*.npz"))


def read_shard(path: Path) -> Iterator[tuple[Clip, Samples]]:
    """The clips of a shard with their samples."""
    with np.load(path) as shard:
        samples, ends = shard["samples"], shard["ends"]
    yield from zip(read_clips(path), np.split(samples, ends[:-1]), strict=True)


def read_clips(path: Path) -> list[Clip]:
    """The clips of a shard without their samples, which is quick."""
    with np.load(path) as shard:
        lines = bytes(shard["clips"]).decode("utf-8").splitlines()
    found = []
    for line in lines:
        raw = json.loads(line)
        raw |= {"reading": Reading(**raw["reading"]), "room": Room(**raw["room"])}
        found.append(Clip(**raw))
    return found


def held_out(work: Path) -> Iterator[tuple[Clip, Samples]]:
    """Every clip that is not for training; they lie in the last shards, of which no more is read
    than is taken."""
    for path in reversed(shards(work)):
        found = [pair for pair in read_shard(path) if pair[0].part != "train"]
        if not found:
            return
        yield from found


def to_float(samples: Samples) -> Wav:
    """int16 to samples in -1 .. 1."""
    return samples.astype(np.float32) / np.float32(_FULL_SCALE)


def _write_shard(job: tuple[Path, list[Clip]]) -> None:
    """In a worker."""
    path, shard = job
    wavs = [speak(clip.text, clip.reading, clip.room, clip.seed) for clip in shard]
    lines = "\n".join(json.dumps(asdict(clip)) for clip in shard)
    partial = path.with_name(path.stem + ".partial")
    with partial.open("wb") as file:
        np.savez(  # noise hardly gets smaller
            file,
            samples=np.concatenate([(w * _FULL_SCALE).round().astype(np.int16) for w in wavs]),
            ends=np.cumsum([len(w) for w in wavs]),
            clips=np.frombuffer(lines.encode("utf-8"), np.uint8),
        )
    partial.rename(path)
