"""Layers of engines that are built here and run elsewhere: a folder with all that takes.

Where there is no GPU, no search can be made, for each of its engines depends on what the one before
has shown. So one engine of each piece is built that shows all of its states at once, and the
reference's states are written beside it. On the device they are compared, by the runtime alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mimo_edge.parity.engine_piece import EnginePiece
from mimo_edge.parity.findings import Apart, Layer
from mimo_edge.parity.job import Job
from mimo_edge.parity.own_output import OwnOutput
from mimo_edge.parity.recording import LIMIT
from mimo_edge.parity.tap import Feed, Tap, Values, output_of, own_output
from mimo_edge.parity.tolerances import worst_snr
from mimo_edge.runtime.backends.trt import TrtBackend
from mimo_edge.runtime.bundle.arrays import DAMAGED, read_arrays
from mimo_edge.runtime.bundle.engine import Profile
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.files import read_text, write_text
from mimo_edge.runtime.bundle.manifest import TensorSpec

SCHEMA = 1
HEADER, ARRAYS = "layers.json", "layers.npz"


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage: what its piece is fed, run after run, and what the reference has."""

    stage: str
    piece: str
    allowed: float  # dB
    profile: Profile  # of the engine that shows its states
    warm: int
    taps: Mapping[str, Sequence[str]]  # tap -> the weights between it and the one before
    counts: Mapping[str, Sequence[int]]  # tap or output -> the runs that show it
    feeds: Sequence[Feed]
    theirs: Values

    @classmethod
    def of(
        cls, job: Job, taps: Mapping[str, Sequence[str]], allowed: float, profile: Profile
    ) -> "Stage":
        """What a job needs, computed."""
        names = [*taps, own_output(job.piece)]
        theirs = job.reference([*job.needs, *names])
        feeds = job.feeds(theirs)
        runs = range(len(feeds) - job.warm)
        counts = {name: [run for run in runs if job.counts(name, run)] for name in names}
        kept = {name: theirs[name] for name in names}
        return cls(job.stage, job.piece, allowed, profile, job.warm, taps, counts, feeds, kept)

    def job(self) -> Job:
        """The same job, without the reference."""
        return Job(
            self.stage,
            self.piece,
            lambda _: self.theirs,
            lambda _: list(self.feeds),
            warm=self.warm,
            counts=lambda name, run: run in self.counts[name],
        )


@dataclass(frozen=True)
class Seen:
    """What the engines of a stage have shown, where that of the build is out of tolerance."""

    stage: str
    layers: tuple[Layer, ...]
    weights: tuple[str, ...]  # before the first layer that is out of tolerance
    output: str
    own: Apart  # of that output, from the engine of the build
    wrong: bool  # whether it is still out of tolerance

    def sentence(self) -> str:
        """For people."""
        apart = f"{self.output}: {self.own.phrase()} from the engine of the build"
        if not self.wrong:
            return (
                f"{self.stage}: with all states as outputs the error is gone ({apart}). So it lies "
                "in what TensorRT fuses, and no layer is named. Where GPU and checkpoint are, "
                "`mimo-edge validate --bisect` asks for one state at a time"
            )
        before = "its input"
        for layer in self.layers:
            if not layer.passed:
                return (
                    f"{self.stage}: between {before} and {layer.tap} ({layer.snr:.1f} dB, "
                    f"{layer.allowed:g} allowed); whether it was born there is not known ({apart})"
                )
            before = layer.tap
        return f"{self.stage}: all states are in tolerance, what comes after them is not ({apart})"


@dataclass(frozen=True, eq=False)
class Case:
    """The stages of one bundle, in the order of computing. `bundle` is its identity."""

    bundle: str
    stages: tuple[Stage, ...]

    def save(self, folder: Path) -> None:
        """Write the two files. Raises InputError if the states are more than a recording may
        hold."""
        arrays: dict[str, np.ndarray] = {}
        for at, stage in enumerate(self.stages):
            for run, feed in enumerate(stage.feeds):
                arrays |= {f"{at}/feed/{run}/{name}": _plain(a) for name, a in feed.items()}
            for name, values in stage.theirs.items():
                arrays |= {f"{at}/theirs/{i}/{name}": array for i, array in enumerate(values)}
        size = sum(array.nbytes for array in arrays.values())
        if size > LIMIT:
            raise InputError(
                f"the states of all layers take {size >> 20} MB, the limit is {LIMIT >> 20} MB. "
                "Record shorter clips and texts."
            )
        np.savez_compressed(folder / ARRAYS, allow_pickle=False, **arrays)
        plain = ("stage", "piece", "allowed", "profile", "warm", "taps", "counts")
        header = {
            "schema": SCHEMA,
            "bundle": self.bundle,
            "stages": [{name: getattr(stage, name) for name in plain} for stage in self.stages],
        }
        write_text(folder / HEADER, json.dumps(header, indent=1) + "\n")

    @classmethod
    def open(cls, folder: Path) -> "Case":
        """Raises InputError for a folder that holds none, or a damaged one."""
        try:
            raw = json.loads(read_text(folder / HEADER))
            if raw["schema"] != SCHEMA:
                raise ValueError(f"schema {raw['schema']}, this program reads {SCHEMA}")
            arrays = read_arrays(folder / ARRAYS, LIMIT)
            return cls(
                raw["bundle"], tuple(_stage(i, s, arrays) for i, s in enumerate(raw["stages"]))
            )
        except (OSError, *DAMAGED) as error:
            raise InputError(
                f"{folder} holds no layers to look at ({type(error).__name__}: {error}). Copy the "
                "folder again that `mimo-edge validate --bisect` wrote."
            ) from error


def look(folder: Path, backend: TrtBackend) -> list[Seen]:
    """Run a case on the GPU that is here: the first stage whose engine is out of tolerance, or
    none. Raises InputError for another bundle's, EngineError for engines that do not fit here."""
    case = Case.open(folder)
    if case.bundle != backend.bundle.identity:
        raise InputError(
            f"{folder} is of the bundle {case.bundle[:16]}, {backend.bundle.folder} is "
            f"{backend.bundle.identity[:16]}. Name the bundle that was recorded."
        )
    for stage in case.stages:
        spec, job, name = backend.bundle.piece(stage.piece), stage.job(), own_output(stage.piece)
        profile = backend.identity.pieces[stage.piece].profiles[0]
        as_it_is = EnginePiece(backend, backend.engine(stage.piece), spec, profile)
        values, _ = job.play(as_it_is, (), stage.theirs, (name,))
        own = OwnOutput(name, values[name], stage.theirs[name], stage.allowed)
        if own.is_wrong():
            shown = tuple(TensorSpec(output_of(tap), "float32", ()) for tap in stage.taps)
            spec = replace(spec, outputs=(*spec.outputs, *shown))
            engine = backend.open_engine(folder / f"{stage.piece}.plan", spec)
            piece = EnginePiece(backend, engine, spec, stage.profile)
            taps = [Tap(tap, tap) for tap in stage.taps]
            mine, _ = job.play(piece, taps, stage.theirs, (name,))
            return [_seen(stage, mine, own)]
    return []


def _seen(stage: Stage, mine: Values, own: OwnOutput) -> Seen:
    layers = tuple(
        Layer(stage.stage, tap, worst_snr(mine[tap], stage.theirs[tap]), stage.allowed)
        for tap in stage.taps
    )
    first = next((layer.tap for layer in layers if not layer.passed), None)
    values = mine[own.name]
    return Seen(
        stage.stage,
        layers,
        () if first is None else tuple(stage.taps[first]),
        own.name,
        own.apart(values),
        own.is_wrong(values),
    )


def _plain(array: np.ndarray) -> np.ndarray:
    """In a form that a file can hold: bfloat16 is no type of numpy's own."""
    return array if array.dtype.kind in "biuf" else array.astype(np.float32)


def _stage(at: int, raw: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Stage:
    """Raises one of DAMAGED."""
    feeds: dict[int, dict[str, np.ndarray]] = {}
    theirs: dict[str, dict[int, np.ndarray]] = {}
    for key, array in arrays.items():
        number, kind, place, name = key.split("/", 3)
        if int(number) == at and kind == "feed":
            feeds.setdefault(int(place), {})[name] = array
        elif int(number) == at:
            theirs.setdefault(name, {})[int(place)] = array
    profile = {
        str(name): tuple(tuple(int(size) for size in shape) for shape in shapes)
        for name, shapes in raw["profile"].items()
    }
    values = {name: [v[i] for i in range(len(v))] for name, v in theirs.items()}
    return Stage(
        **{**raw, "profile": profile},
        feeds=[feeds[run] for run in range(len(feeds))],
        theirs=values,
    )


def to_json(seen: list[Seen]) -> str:
    """What was seen, for programs."""
    return json.dumps([{**asdict(s), "sentence": s.sentence()} for s in seen], indent=1) + "\n"
