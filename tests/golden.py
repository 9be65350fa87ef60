"""A folder of golden vectors, and what its own json files say is in it.

The layout is described in tests/golden/GOLDEN.md. Sizes and cases are never written in a test: they
are read from the folder, so that another set in the same layout runs unchanged.
"""

import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

DEFAULT_FOLDER = Path(__file__).parent / "golden"


class Golden:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info: dict[str, Any] = self.json("info.json")

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def npz(self, name: str) -> dict[str, np.ndarray]:
        return _load(self.folder / name)

    @cached_property
    def lm_names(self) -> list[str]:
        return sorted(p.name for p in self.folder.glob("lm_*") if p.is_dir())

    @property
    def empty_id(self) -> int:
        return self.info["lm_args"]["empty_idx"]

    @cached_property
    def mel_cases(self) -> list[str]:
        return prefixes(self.npz("mel.npz"), ".logmel")

    @cached_property
    def resample_cases(self) -> list[str]:
        return prefixes(self.npz("mel.npz"), ".wav24k")

    @cached_property
    def encoder_cases(self) -> list[str]:
        return list(self.info["encoder_cases"])

    @cached_property
    def decoder_cases(self) -> list[str]:
        return [c for c in prefixes(self.npz("decoder.npz"), ".hidden")]

    @cached_property
    def stream_cases(self) -> list[str]:
        return list(self.info["stream_cases"])

    def generate_cases(self, lm: str) -> list[str]:
        return prefixes(self.npz(f"{lm}.generate.npz"), ".ids")


def prefixes(arrays: dict[str, np.ndarray], suffix: str) -> list[str]:
    """What stands before `suffix` in the names that end with it, at the top level."""
    names = [n.removesuffix(suffix) for n in arrays if n.endswith(suffix)]
    return [n for n in names if "." not in n]


@lru_cache(maxsize=64)
def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
