"""The golden set of MiMo-V2.5-ASR, as an independent port computes it (its README says how)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden import _load

FOLDER = Path(__file__).parent / "golden_v25_asr"
LANGUAGE_MODEL = FOLDER / "MiMo-V2.5-ASR-tiny"
AUDIO_TOKENIZER = FOLDER / "MiMo-Audio-Tokenizer"
UTTERANCES = Path(__file__).parent.parent / "assets" / "utterances"
LANGUAGE = {"": "auto", "<english>": "english", "<chinese>": "chinese"}


@dataclass(frozen=True)
class Case:
    """One recording with one tag."""

    raw: dict[str, Any]  # its entry of golden.json

    def __str__(self) -> str:
        return f"{self.raw['recording']}-{self.language}"

    @property
    def language(self) -> str:
        return LANGUAGE[self.raw["tag"]]

    @property
    def audio(self) -> Path:
        return UTTERANCES / f"{self.raw['recording']}.flac"

    def array(self, name: str) -> np.ndarray:
        tag = self.raw["tag"] or "none"
        arrays = _load(FOLDER / "golden.npz")
        return arrays[f"{self.raw['recording']}.{self.raw['window']}.{tag}.{name}"]


# the other window is the port's own, and not upstream's
CASES = [
    Case(raw)
    for raw in json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
    if raw["window"] == "periodic"
]
