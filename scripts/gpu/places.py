"""Where the tensors of a hollow bundle belong, and what a quantised one is filled with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimo_edge.runtime.bundle.files import read_text

CODES = {"int4": 16, "int8": 256}  # how many there are
PLACES, CONSTANTS = "places.json", "constants.npz"  # of a hollow bundle


@dataclass(frozen=True)
class Place:
    """One tensor of a piece's data file."""

    piece: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int
    spread: float | None = None  # of scales: what each of them is


def scale(dtype: str, shape: tuple[int, ...]) -> float:
    """A scale under which even codes [inputs, outputs] spread as a layer's weights do."""
    return float(shape[0] ** -0.5 / (CODES[dtype] / 12**0.5))


def read_places(folder: Path) -> list[Place]:
    """Those of a hollow bundle."""
    raw: list[dict[str, Any]] = json.loads(read_text(folder / PLACES))
    return [Place(**entry | {"shape": tuple(entry["shape"])}) for entry in raw]
