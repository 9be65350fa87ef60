"""Stage 4: what nano can do, on sentences that it never saw, in figures."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimo_ref.model import AudioTokenizer
from mimo_ref.weights import load_audio_tokenizer, load_language_model
from scripts.nano import grammar
from scripts.nano.codes import Codes
from scripts.nano.compare import compare
from scripts.nano.data import Clip, read_shard, shards, to_float
from scripts.nano.lessons import Teacher
from scripts.nano.listen import Listener, edits
from scripts.nano.losses import Distances
from scripts.nano.save import AUDIO_TOKENIZER, LANGUAGE_MODEL
from scripts.nano.train_tokenizer import codec_figures

DEPTHS = (1, 2, 4, 8)  # codebooks


class Score:
    """Word errors over many sentences, and how many came out without any."""

    def __init__(self) -> None:
        self.edits = self.words = self.right = self.count = 0

    def add(self, heard: str, said: str) -> None:
        wrong = edits(grammar.words(heard), grammar.words(said))
        self.edits += wrong
        self.words += len(grammar.words(said))
        self.right += wrong == 0
        self.count += 1

    def figures(self) -> dict[str, float]:
        """error_rate of words, and right: the share of whole sentences."""
        return {
            "error_rate": round(self.edits / max(1, self.words), 4),
            "right": round(self.right / max(1, self.count), 4),
            "sentences": self.count,
        }


@dataclass(frozen=True, eq=False)
class Spoken:
    """A held-out clip."""

    clip: Clip
    wav: torch.Tensor  # [N]


class Evaluation:
    """A checkpoint pair and the held-out clips."""

    def __init__(self, checkpoint: Path, work: Path, count: int) -> None:
        folder = checkpoint / AUDIO_TOKENIZER
        self.audio: AudioTokenizer = load_audio_tokenizer(folder, dtype=torch.float32)
        folder = checkpoint / LANGUAGE_MODEL
        model = load_language_model(folder, dtype=torch.float32)
        teacher = Teacher(folder)
        self.sampled = Listener(model, teacher)
        self.greedy = Listener(model, teacher, greedy=True)
        self.spoken = list(held_out(work))
        self.count = count

    def figures(self) -> dict[str, Any]:
        """All of them. Samples are by upstream's presets, transcripts greedy as upstream's."""
        return {
            "codec": self.codec(),
            "asr": {part: self.asr(part) for part in ("held_out", "new_voice", "own")},
            "asr_of_reconstruction": {str(n): self.asr("held_out", n) for n in DEPTHS},
            "tts": {"sampled": self.tts(self.sampled), "greedy": self.tts(self.greedy)},
            "dialogue": self.dialogue(self.sampled),
        }

    def clips(self, part: str) -> list[Spoken]:
        """Up to `count` clips; part "own" is nano's own voice, clean."""
        own = part == "own"
        found = [s for s in self.spoken if s.clip.own == own and (own or s.clip.part == part)]
        return found[: self.count]

    def codec(self) -> dict[str, dict[str, float]]:
        """Distances of reconstructed clips, by the number of codebooks."""
        distances = Distances(self.audio.config)
        wavs = [spoken.wav for spoken in self.clips("held_out")[:40]]
        figures = {str(n): codec_figures(self.audio, distances, wavs, n) for n in DEPTHS}
        return {n: {k: round(v, 4) for k, v in f.items()} for n, f in figures.items()}

    def asr(self, part: str, n_q: int | None = None) -> dict[str, float]:
        """Transcripts; with n_q, of what the codec makes of n_q codebooks."""
        score = Score()
        for spoken in self.clips(part):
            codes = self.audio.encode(spoken.wav)
            if n_q is not None:
                codes = self.audio.encode(self.audio.decode(codes[:n_q]))
            score.add(self.sampled.transcribe(codes.numpy()), spoken.clip.text)
        return score.figures()

    def tts(self, listener: Listener) -> dict[str, float]:
        """Held-out texts read aloud, decoded to sound, heard back, transcribed.

        mel and pitch compare the sound with espeak's own reading: a distance and a correlation.
        """
        score, compared = Score(), []
        for seed, spoken in enumerate(self.clips("own")):
            codes = listener.read_aloud(spoken.clip.text, seed).codes
            score.add(self.hear(codes), spoken.clip.text)
            if codes.shape[1]:
                wav = self.audio.decode(torch.from_numpy(codes))
                compared.append(compare(wav, spoken.wav, self.audio.config))
        figures = score.figures()
        for name, values in zip(("mel", "pitch"), np.array(compared).reshape(-1, 2).T, strict=True):
            known = values[~np.isnan(values)]
            if known.size:
                figures[name] = round(float(known.mean()), 4)
        return figures

    def dialogue(self, listener: Listener) -> dict[str, float]:
        """Held-out spoken questions: is the right answer heard in the sound of the reply?

        `right` judges the sound, `right_text` the words that the model wrote while it spoke.
        """
        known = {s.text: s.answer for kind in grammar.kinds() for s in grammar.sentences(kind)}
        sound, text = Score(), Score()
        asked = [s for s in self.spoken if s.clip.part == "held_out" and not s.clip.own]
        for seed, spoken in enumerate([s for s in asked if known[s.clip.text]][: self.count]):
            wanted = known[spoken.clip.text] or ""
            answer = listener.reply(self.audio.encode(spoken.wav).numpy(), seed)
            text.add(listener.text(answer), wanted)
            sound.add(self.hear(answer.codes), wanted)
        return sound.figures() | {"right_text": text.figures()["right"]}

    def hear(self, codes: Codes) -> str:
        """What our own transcription makes of spoken codes, by way of the sound."""
        if codes.shape[1] == 0:
            return ""
        wav = self.audio.decode(torch.from_numpy(codes))
        return self.sampled.transcribe(self.audio.encode(wav).numpy())


def held_out(work: Path) -> Iterator[Spoken]:
    """Every clip that is not for training."""
    for path in reversed(shards(work)):
        found = [
            Spoken(clip, torch.from_numpy(to_float(samples)))
            for clip, samples in read_shard(path)
            if clip.part != "train"
        ]
        if not found:
            return
        yield from found


@torch.inference_mode()
def evaluate(checkpoint: Path, work: Path, count: int = 60) -> dict[str, Any]:
    """All figures of a checkpoint; also written to `work`/figures.json."""
    start = time.monotonic()
    figures = Evaluation(checkpoint, work, count).figures()
    figures["seconds"] = round(time.monotonic() - start, 1)
    text = json.dumps(figures, indent=2)
    (work / "figures.json").write_text(text + "\n", encoding="utf-8")
    return figures
