"""What the layers of a model read: statistics of every input channel, and the file that holds them.

So of what the backbone keeps of each position: its values, channel by channel, and its keys by the
pairs of channels that the rotation turns into one another. A pair's length is the same at every
position, where its channels are not.

`mimo-edge calibrate` finds them on the real pipeline. They belong to the checkpoint, whatever
bundle of it ran: a calibration knows the fingerprint of its checkpoints, and no others take it.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mimo_edge.engines.components import bare
from mimo_edge.runtime.bundle.errors import MALFORMED, CalibrationError
from mimo_edge.runtime.bundle.files import hash_file, write_bytes
from numpy.typing import NDArray

FORMAT = 2
READABLE = (1, FORMAT)  # the first says nothing of keys and values
CACHE = "cache."  # before the names of keys and values: cache.keys_0 [H * D / 2], cache.values_0
_ABOUT = "about"
HOW = (
    "mimo-edge calibrate BUNDLE --audio DIR --text FILE -o calib.npz, and give --calibration "
    "calib.npz"
)
Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the input of a layer was, over all positions: three numbers of each channel [inputs]."""

    largest: Doubles  # absolute value
    total: Doubles  # sum of absolute values
    squares: Doubles  # sum of squares
    count: int  # positions

    @property
    def mean(self) -> Doubles:
        """Mean absolute value."""
        return self.total / self.count

    @property
    def mean_square(self) -> Doubles:
        return self.squares / self.count

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(
            np.maximum(self.largest, other.largest),
            self.total + other.total,
            self.squares + other.squares,
            self.count + other.count,
        )

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.rows).all())

    @property
    def rows(self) -> Doubles:
        """As the file holds them, [3, inputs]."""
        return np.stack((self.largest, self.total, self.squares))


@dataclass(frozen=True)
class About:
    """Where statistics come from, for people and for checks."""

    source: str  # fingerprint of the checkpoints, `Manifest.source`
    recipe: str  # of the bundle that ran
    seed: int
    work: str = ""  # digest of all that was read, of seed and bundle
    items: int = 0  # recordings and texts done
    recordings: Mapping[str, float] = field(default_factory=dict)  # file -> seconds
    spoken: Mapping[str, int] = field(default_factory=dict)  # script of the transcript -> files
    texts: Mapping[str, int] = field(default_factory=dict)  # script -> lines
    positions: Mapping[str, int] = field(default_factory=dict)  # "text", "speech" -> patches


@dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics by the names of weights, those of streaming graphs without their prefix, and of
    keys and values by CACHE and a name."""

    about: About
    layers: Mapping[str, Statistics]
    digest: str = ""  # sha256 of the file

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Read a file. Raises CalibrationError for one that is not whole, or says nothing."""
        calibration = cls.read(path)
        for name, found in calibration.layers.items():
            check(found, name, str(path))
        return calibration

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """As `load`, of a work that may not be done: statistics may still say nothing."""
        try:
            with np.load(path, allow_pickle=False) as file:
                raw: dict[str, Any] = json.loads(file[_ABOUT].tobytes())
                if raw.pop("format") not in READABLE:
                    raise CalibrationError(
                        f"{path} is of another version of mimo-edge. Calibrate again: {HOW}."
                    )
                counts = raw.pop("counts")
                layers = {name: _statistics(file[name], count) for name, count in counts.items()}
            return cls(About(**raw), layers, hash_file(path).sha256)
        except FileNotFoundError as error:
            raise CalibrationError(f"{path} is not there. Make it: {HOW}.") from error
        except (zipfile.BadZipFile, EOFError, OSError, *MALFORMED) as error:
            if isinstance(error, CalibrationError):
                raise
            raise CalibrationError(
                f"{path} is damaged, or no calibration ({type(error).__name__}: {error}). "
                f"Calibrate again: {HOW}."
            ) from error

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        counts = {name: found.count for name, found in self.layers.items()}
        about = asdict(self.about) | {"format": FORMAT, "counts": counts}
        content = {name: found.rows for name, found in self.layers.items()}
        content[_ABOUT] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **content)  # type: ignore[arg-type]
        write_bytes(path, buffer.getvalue())

    def check_source(self, source: str, place: Path) -> None:
        """Raises CalibrationError for statistics of another checkpoint than that of `place`."""
        if self.about.source != source:
            raise CalibrationError(
                f"the calibration is of another checkpoint ({self.about.source[:12]}) than {place} "
                f"({source[:12]}). Calibrate a bundle of this one: {HOW}."
            )

    def of_cache(self, name: str, width: int) -> Statistics:
        """What goes into the cache `keys_0` or `values_0`. Raises CalibrationError."""
        if not any(known.startswith(CACHE) for known in self.layers):
            raise CalibrationError(
                "the calibration says nothing of keys and values: an earlier version of mimo-edge "
                f"made it. Calibrate again: {HOW}."
            )
        return self.of(f"{CACHE}{name}", width)

    def of(self, weight: str, inputs: int) -> Statistics:
        """What a layer reads, by the name of its weight [outputs, inputs]. Raises
        CalibrationError."""
        found = self.layers.get(bare(weight))
        if found is None or len(found.largest) != inputs:
            said = "nothing" if found is None else f"{len(found.largest)} inputs, not {inputs},"
            raise CalibrationError(
                f"the calibration says {said} of {weight}. Calibrate with audio and text, on a "
                f"bundle that has this layer: {HOW}."
            )
        return found


def check(found: Statistics, name: str, where: str) -> None:
    """Raises CalibrationError for statistics by which nothing can be scaled."""
    if not found.finite:
        problem = "NaN or infinite: the model overflows, or the file is damaged"
    elif found.count < 1 or not found.largest.any():
        problem = "only zeros: nothing went into it"
    elif (found.rows < 0).any():
        problem = "negative sizes: the file was altered"
    else:
        return
    raise CalibrationError(
        f"{where}: the statistics of {name} are {problem}. Calibrate a float32 bundle with "
        f"recordings of speech: {HOW}."
    )


def _statistics(rows: NDArray[Any], count: int) -> Statistics:
    if rows.ndim != 2 or len(rows) != 3 or rows.dtype != np.float64 or type(count) is not int:
        raise ValueError(f"statistics {rows.dtype} {list(rows.shape)} of {count!r} positions")
    return Statistics(rows[0], rows[1], rows[2], count)
