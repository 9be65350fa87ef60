"""Layers of engines that are built here and run elsewhere: a folder with all that takes.

Where there is no GPU, no search can be made, for each of its engines depends on what the one before
has shown. So one engine of each piece is built that shows all of its states at once, and the
reference's states are written beside it. On the device they are compared, by the runtime alone.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mimo_edge.parity.engine_piece import EnginePiece
from mimo_edge.parity.findings import Apart, Layer
from mimo_edge.parity.job import Job, handed_on
from mimo_edge.parity.own_output import OwnOutput
from mimo_edge.parity.recording import LIMIT
from mimo_edge.parity.report_data import plain
from mimo_edge.parity.tap import Feed, Tap, Values, output_of, own_output
from mimo_edge.parity.tolerances import worst_snr
from mimo_edge.runtime.backends.trt import TrtBackend
from mimo_edge.runtime.bundle.arrays import DAMAGED, packed, read_arrays
from mimo_edge.runtime.bundle.engine import Profile
from mimo_edge.runtime.bundle.engine_folders import check_plan
from mimo_edge.runtime.bundle.errors import EngineError, InputError
from mimo_edge.runtime.bundle.files import read_text, write_bytes, write_text
from mimo_edge.runtime.bundle.manifest import PIECES, FileSpec, PieceSpec, TensorSpec

SCHEMA = 1
HEADER, ARRAYS = "layers.json", "layers.npz"
AGAIN = "Copy the folder again that `mimo-edge validate --bisect` wrote."


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage: what its piece is fed, run after run, and what the reference has."""

    stage: str
    piece: str
    allowed: float  # dB
    profile: Profile  # of the engine that shows its states
    warm: int
    taps: Mapping[str, Sequence[str]]  # tap -> the weights between it and the norm before
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
    weights: tuple[str, ...]  # before the first layer that is out of tolerance, if it is named
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
            if Tap(layer.tap, layer.tap).is_norm:  # from an output nothing goes on
                before = layer.tap
        return f"{self.stage}: all states are in tolerance, what comes after them is not ({apart})"


@dataclass(frozen=True, eq=False)
class Case:
    """The stages of one bundle, in the order of computing. `bundle` is its identity, `plans` are
    the engines that show their states, by piece."""

    bundle: str
    stages: tuple[Stage, ...]
    plans: Mapping[str, FileSpec]

    def save(self, folder: Path) -> None:
        """Write the two files. Raises InputError if the states are more than a recording may
        hold."""
        arrays: dict[str, np.ndarray] = {}
        for at, stage in enumerate(self.stages):
            for run, feed in enumerate(stage.feeds):
                arrays |= {f"{at}/feed/{run}/{name}": _plain(a) for name, a in feed.items()}
            for name, values in stage.theirs.items():
                arrays |= {f"{at}/theirs/{i}/{name}": _plain(a) for i, a in enumerate(values)}
        size = sum(array.nbytes for array in arrays.values())
        if size > LIMIT:
            raise InputError(
                f"the states of all layers take {size >> 20} MB, the limit is {LIMIT >> 20} MB. "
                "Record shorter clips and texts."
            )
        write_bytes(folder / ARRAYS, packed(arrays))
        kept = ("stage", "piece", "allowed", "profile", "warm", "taps", "counts")
        header = {
            "schema": SCHEMA,
            "bundle": self.bundle,
            "plans": {piece: asdict(plan) for piece, plan in self.plans.items()},
            "stages": [{name: getattr(stage, name) for name in kept} for stage in self.stages],
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
            stages = tuple(_stage(i, s, arrays) for i, s in enumerate(raw["stages"]))
            plans = {piece: FileSpec(**plan) for piece, plan in raw["plans"].items()}
            if type(raw["bundle"]) is not str or plans.keys() != {s.piece for s in stages}:
                raise ValueError("bundle or plans are none")
            return cls(raw["bundle"], stages, plans)
        except (OSError, *DAMAGED) as error:
            raise InputError(
                f"{folder} holds no layers to look at ({type(error).__name__}: {error}). {AGAIN}"
            ) from error


def plan_of(folder: Path, piece: str) -> Path:
    """Where the engine lies that shows the states of a piece."""
    return folder / f"{piece}.plan"


def look(folder: Path, backend: TrtBackend) -> list[Seen]:
    """Run a case on the GPU that is here: the first stage whose engine is out of tolerance, or
    none. Raises InputError for another bundle's, EngineError for engines that do not fit here, or
    are not those that were written down."""
    case = Case.open(folder)
    if case.bundle != backend.bundle.identity:
        raise InputError(
            f"{folder} is of the bundle {case.bundle[:16]}, {backend.bundle.folder} is "
            f"{backend.bundle.identity[:16]}. Name the bundle that was recorded."
        )
    for stage in case.stages:
        spec, job, name = backend.bundle.piece(stage.piece), stage.job(), own_output(stage.piece)
        if not _fits(stage, spec):
            raise InputError(
                f"{folder} feeds {stage.piece} otherwise than the bundle has it. {AGAIN}"
            )
        profile = backend.identity.pieces[stage.piece].profiles[0]
        as_it_is = EnginePiece(backend, backend.engine(stage.piece), spec, profile)
        values, _ = job.play(as_it_is, (), stage.theirs, (name,))
        own = OwnOutput(name, values[name], stage.theirs[name], stage.allowed)
        if own.is_wrong():
            shown = tuple(TensorSpec(output_of(tap), "float32", ()) for tap in stage.taps)
            spec = replace(spec, outputs=(*spec.outputs, *shown))
            plan = plan_of(folder, stage.piece)
            try:
                check_plan(plan, case.plans[stage.piece])
            except EngineError as error:
                raise EngineError(f"{error} {AGAIN}") from error
            engine = backend.open_engine(plan, spec)
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
    wrong = own.is_wrong(values)
    weights = () if first is None or not wrong else tuple(stage.taps[first])
    return Seen(stage.stage, layers, weights, own.name, own.apart(values), wrong)


def _fits(stage: Stage, spec: PieceSpec) -> bool:
    """Whether a stage names and feeds the ports that its piece has."""
    axes = {port.name: port.axes for port in spec.inputs}
    later = axes.keys() - handed_on(port.name for port in spec.outputs).values()
    first, *others = stage.feeds
    if not first.keys() == axes.keys() == stage.profile.keys():
        return False
    if not all(later <= feed.keys() <= axes.keys() for feed in others):
        return False
    if any(array.ndim != len(axes[n]) for feed in stage.feeds for n, array in feed.items()):
        return False
    for name, of in axes.items():
        shapes = stage.profile[name]
        if len(shapes) != 3 or any(len(shape) != len(of) for shape in shapes):
            return False
        for axis, most, size in zip(of, shapes[2], first[name].shape, strict=True):
            if most < 1 or (axis == "capacity" and size > most):
                return False
    return True


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
    stage = Stage(
        **{**raw, "profile": profile},
        feeds=[feeds[run] for run in range(len(feeds))],
        theirs=values,
    )
    problem = _problem(stage)
    if problem is not None:
        raise ValueError(f"{problem} of stage {at} cannot be used")
    return stage


def _problem(stage: Stage) -> str | None:
    """Which part of a stage that was read is none. Raises one of DAMAGED for some."""
    weights = list(stage.taps.values())
    runs = range(len(stage.feeds) - (stage.warm if type(stage.warm) is int else 0))
    shown = stage.theirs.items()
    sound = {
        "stage": type(stage.stage) is str,
        "piece": stage.piece in PIECES,
        "allowed": type(stage.allowed) in (int, float) and math.isfinite(stage.allowed),
        "feeds": len(stage.feeds) > 0,
        "warm": type(stage.warm) is int and stage.warm in range(len(stage.feeds)),
        "taps": all(type(w) is list and all(type(n) is str for n in w) for w in weights),
        "counts": stage.counts.keys() == stage.theirs.keys()
        and all(
            len(set(stage.counts[name])) == len(values) and {*stage.counts[name]} <= {*runs}
            for name, values in shown
        ),
        "theirs": {*stage.taps, own_output(stage.piece)} == stage.theirs.keys(),
    }
    return next((name for name, is_sound in sound.items() if not is_sound), None)


def to_json(seen: list[Seen]) -> str:
    """What was seen, for programs."""
    raw = plain([{**asdict(each), "sentence": each.sentence()} for each in seen])
    return json.dumps(raw, indent=1, allow_nan=False) + "\n"
