"""Stage 6: what nano can do, on sentences that it never saw, in figures.

The checkpoint is exported, and judged as its users run it: in float32 on the torch-free runtime.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mimo_edge.export.exporter import export_bundle
from mimo_edge.export.sources import Sources
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from mimo_edge.parity.speech_score import Judge, Utterance, Verdict
from mimo_edge.parity.word_errors import WordErrors
from mimo_edge.runtime.bundle.files import write_text
from mimo_edge.runtime.bundle.manifest import MANIFEST
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.checkpoint.pair_folder import AUDIO_TOKENIZER, LANGUAGE_MODEL
from mimo_edge.scripts.nano import data, grammar
from mimo_edge.scripts.nano.compare import compare
from mimo_edge.scripts.nano.data import Clip, Samples, to_float
from mimo_edge.scripts.nano.losses import Distances, codec_figures
from mimo_edge.scripts.nano.sizes import NANO
from mimo_edge.scripts.progress import StageProgress

DEPTHS = (1, 2, 4, 8)  # codebooks
_RECONSTRUCTED = 40  # clips for the codec's distances
Figures = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Spoken:
    """A held-out clip."""

    clip: Clip
    samples: Samples  # [N]

    @property
    def wav(self) -> np.ndarray:
        """float32 [N] at 24 kHz."""
        return to_float(self.samples)

    @property
    def utterance(self) -> Utterance:
        """The clip with what is said in it."""
        return Utterance(self.wav, self.clip.text)


class Evaluation:
    """A model and the held-out clips of a work folder."""

    def __init__(self, model: MimoAudio, work: Path, count: int) -> None:
        self.model, self.judge, self.count = model, Judge(model), count
        self.spoken = held_out(work)

    def figures(self) -> Figures:
        """All of them. Sampling is that of upstream's presets: transcripts greedy, speech drawn."""
        jobs = {
            "codec": self.codec,
            "asr": lambda: {part: self.asr(part) for part in ("held_out", "new_voice", "own")},
            "asr_of_reconstruction": lambda: {str(n): self.asr("held_out", n) for n in DEPTHS},
            "tts": self.tts,
            "dialogue": self.dialogue,
        }
        found: Figures = {}
        with StageProgress() as progress:
            for name, job in jobs.items():
                progress.report(name, len(found), len(jobs), "figures")
                found[name] = job()
                progress.note(f"{name} {json.dumps(found[name])}")
        return found

    def clips(self, part: str) -> list[Spoken]:
        """Up to `count` clips; part "own" is nano's own voice, clean."""
        own = part == "own"
        found = [s for s in self.spoken if s.clip.own == own and (own or s.clip.part == part)]
        return found[: self.count]

    def questions(self) -> list[Utterance]:
        """Up to `count` spoken questions of seen voices, with the right answers."""
        sentences = grammar.by_text()
        asked = [s for s in self.spoken if s.clip.part == "held_out" and not s.clip.own]
        pairs = [(s.wav, sentences[s.clip.text].answer) for s in asked]
        return [Utterance(wav, answer) for wav, answer in pairs if answer][: self.count]

    def codec(self) -> Figures:
        """Distances of reconstructed clips, by the number of codebooks."""
        distances = Distances(AudioTokenizerConfig.from_dict(NANO.audio_tokenizer))
        wavs = [spoken.wav for spoken in self.clips("held_out")[:_RECONSTRUCTED]]
        return {
            str(n): codec_figures(
                distances,
                (
                    (torch.from_numpy(self.judge.reconstruct(w, n)), torch.from_numpy(w))
                    for w in wavs
                ),
            )
            for n in DEPTHS
        }

    def asr(self, part: str, n_q: int | None = None) -> Figures:
        """Transcripts; with n_q, of what the codec makes of n_q codebooks."""
        utterances = [spoken.utterance for spoken in self.clips(part)]
        return _errors(self.judge.asr(utterances, n_q))

    def tts(self) -> Figures:
        """Held-out texts read aloud, decoded to sound, heard back, transcribed.

        mel and pitch compare the sound with espeak's own reading: a distance and a correlation.
        """
        clips, compared = self.clips("own"), []
        verdicts = list(self.judge.tts(spoken.clip.text for spoken in clips))
        config = AudioTokenizerConfig.from_dict(NANO.audio_tokenizer)
        for verdict, spoken in zip(verdicts, clips, strict=True):
            if verdict.wav is not None:
                wavs = torch.from_numpy(verdict.wav), torch.from_numpy(spoken.wav)
                compared.append(compare(*wavs, config))
        figures = _errors(verdicts)
        for name, values in zip(("mel", "pitch"), np.array(compared).reshape(-1, 2).T, strict=True):
            known = values[~np.isnan(values)]
            if known.size:
                figures[name] = round(float(known.mean()), 4)
        return figures

    def dialogue(self) -> Figures:
        """Held-out spoken questions: is the right answer heard in the sound of the reply?

        `right` judges the sound, `right_text` the words that the model wrote while it spoke.
        """
        verdicts, text = list(self.judge.dialogue(self.questions())), WordErrors()
        for verdict in verdicts:
            text.add(verdict.result.answer if verdict.result else "", verdict.wanted)
        return _errors(verdicts) | {"right_text": round(text.right_rate, 4)}


def held_out(work: Path) -> list[Spoken]:
    """Every clip that is not for training."""
    return [Spoken(clip, samples) for clip, samples in data.held_out(work)]


def evaluate(checkpoint: Path, work: Path, count: int = 60) -> Figures:
    """All figures of a checkpoint; also written to `work`/figures.json."""
    start = time.monotonic()
    with MimoAudio.open(export(checkpoint, work)) as model:
        figures = Evaluation(model, work, count).figures()
    figures["seconds"] = round(time.monotonic() - start, 1)
    text = json.dumps(figures, indent=2)
    write_text(work / "figures.json", text + "\n")
    return figures


def export(checkpoint: Path, work: Path) -> Path:
    """The checkpoint pair as a bundle, `work`/bundle, unless that is newer than the pair."""
    language_model, manifest = checkpoint / LANGUAGE_MODEL, work / "bundle" / MANIFEST
    saved = max(path.stat().st_mtime for path in checkpoint.rglob("*.safetensors"))
    if manifest.is_file() and manifest.stat().st_mtime > saved:
        return manifest.parent
    with StageProgress() as progress:
        sources = Sources.open(language_model, checkpoint / AUDIO_TOKENIZER, language_model)
        export_bundle(sources, manifest.parent, "fp32", force=True, on_progress=progress.work)
    return manifest.parent


def _errors(verdicts: Iterable[Verdict]) -> Figures:
    errors = WordErrors()
    for verdict in verdicts:
        errors.add(verdict.heard, verdict.wanted)
    return {
        "error_rate": round(errors.rate, 4),
        "right": round(errors.right_rate, 4),
        "sentences": errors.utterances,
    }
