"""Level 5 of the ladder: recipes led along what the float model read and said."""

import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from mimo_edge.parity.forced import LedBundle, Recorded
from mimo_edge.parity.precision import Closeness, compare
from mimo_edge.parity.speech_score import LONGEST, UtteranceSet
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.chat.presets import PRESETS
from mimo_edge.runtime.chat.segments import Grid
from mimo_edge.runtime.generation.loop import generate
from mimo_edge.runtime.generation.request import Request, join_steps, split_grid
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.recipes_report.workshop import Figures


class Own:
    """What the float model read and said, and what it computes of that."""

    def __init__(self, folder: Path, utterances: UtteranceSet, count: int) -> None:
        """The first `count` utterances of each task are what bundles are led along."""
        self.folder, self.bundle = folder, Bundle.open(folder)
        with MimoAudio.open(folder, threads=1) as model:
            self.empty_id = model.tokenizer.special.empty
            self.sequences = list(_record(model, utterances, count))
            heard = utterances.asr[:count]
            self.mels = [model.backend.mel(_wav(model, u.audio)) for u in heard]
        self.led = LedBundle(self.bundle, 1).along(self.sequences, self.empty_id)
        self.codes, self.wavs = self.sound(self.bundle, None)

    def sound(self, bundle: Bundle, codes: list[Ints] | None) -> tuple[list[Ints], list[Floats]]:
        """What a bundle's codec makes of the recordings, and of codes (None: its own)."""
        with OrtBackend(bundle, threads=1) as backend:
            found = [backend.encode(mel) for mel in self.mels]
            n_q = bundle.model.n_q
            return found, [codec.decode(backend, c[:n_q]) for c in (codes or found)]

    def figures(self, bundle: Bundle) -> Figures:
        """Level 5 of a bundle."""
        led = LedBundle(bundle, 1).along(self.sequences, self.empty_id)
        model = self.bundle.model
        found = compare(led, self.led, self.sequences, self.empty_id, model.empty_codes)
        codes, wavs = self.sound(bundle, self.codes)
        heard = [
            float(np.mean([(a[k] == b[k]).mean() for a, b in zip(codes, self.codes, strict=True)]))
            for k in range(model.n_q)
        ]
        sound = Closeness.of(np.concatenate(wavs), np.concatenate(self.wavs))
        return asdict(found) | {"heard": heard, "sound": asdict(sound)}


def _record(model: MimoAudio, utterances: UtteranceSet, count: int) -> Iterator[Recorded]:
    """The first utterances of each task with the float model's own answers."""
    rng = random.Random(0)
    prompts: list[tuple[str, Grid]] = []
    for utterance in utterances.asr[:count]:
        prompts.append(("asr", model.prompts.asr(model.encode(utterance.audio), rng=rng)))
    for text in utterances.tts[:count]:
        prompts.append(("tts", model.prompts.tts(text, rng=rng)))
    for utterance in utterances.dialogue[:count]:
        prompts.append(("dialogue", model.prompts.dialogue(model.encode(utterance.audio))))
    spec, special = model.backend.bundle.model, model.tokenizer.special
    for seed, (task, prompt) in enumerate(prompts):
        preset = PRESETS[task]
        stops = preset.stop_ids(special)
        request = Request(prompt, preset.text, preset.audio, stops, LONGEST, seed=seed)
        steps = list(generate(model.backend, request, special.empty))
        answer = join_steps(steps, spec.empty_codes, spec.group_size)
        grid = np.concatenate((prompt, answer), axis=1)
        text_ids, codes = split_grid(grid, spec.group_size)
        yield Recorded(text_ids, codes, prompt.shape[1] // spec.group_size)


def _wav(model: MimoAudio, audio: Any) -> Floats:
    longest = model.backend.bundle.model.max_audio_seconds
    return load_audio(audio, rate=model.sampling_rate, max_seconds=longest)
