"""`mimo-edge build --target ort-cpu`: a bundle that ONNX Runtime loads fast on this machine.

Other targets read this module too, so ONNX Runtime is imported where it is wanted.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from mimo_edge.engines.calibration import HOW, Calibration
from mimo_edge.engines.ort.int8_cache import scales_of
from mimo_edge.engines.work import Work
from mimo_edge.runtime.backends.opening import onnxruntime_version, open_backend
from mimo_edge.runtime.bundle.built import (
    FLOAT,
    INT8,
    KV_CACHES,
    ORT_CPU,
    find_built,
    place_of,
)
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import IN_FILE, IN_MEMORY, PACKED, Built
from mimo_edge.scripts.progress import StageProgress, size

# options of TensorRT builds
_OTHERS = ("recipe", "max_seq", "in_bundle", "strict", "print_trtexec")


@dataclass(frozen=True)
class BuildForm:
    """What there is to choose: one of PACKED, and the calibration of int8 keys and values."""

    packed: str
    calibration: Calibration | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> "BuildForm":
        """Raises InputError for a choice that lacks something, or CalibrationError."""
        return cls(args.packed or IN_FILE, _calibration(args))

    def is_of(self, built: Built) -> bool:
        """Whether a build has it."""
        digest = "" if self.calibration is None else self.calibration.digest
        return (built.packed, built.calibration) == (self.packed, digest)

    def __str__(self) -> str:
        return _in_words(self.packed, self.calibration is not None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what only such a build takes."""
    parser.add_argument(
        "--packed",
        choices=PACKED,
        help=f"of {ORT_CPU}: where weights are packed for the processor (default: {IN_FILE}). "
        f"{IN_FILE}: once, beside the unpacked ones, and mapped from there. {IN_MEMORY}: each time "
        "that they are loaded; half the disk, a slower start, and as much heap as the weights",
    )
    parser.add_argument(
        "--kv-cache",
        choices=tuple(KV_CACHES),
        help=f"of {ORT_CPU}: what keys and values are kept in (default: {FLOAT}). {INT8} takes a "
        "quarter of the memory, and less time where rows are long",
    )
    parser.add_argument(
        "--calibration",
        metavar="CALIB.npz",
        type=Path,
        help=f"for --kv-cache {INT8}: what `mimo-edge calibrate` found of this checkpoint",
    )


def form_of(built: Built) -> str:
    """The form that a build has, in words."""
    return _in_words(built.packed, bool(built.calibration))


def asked(args: argparse.Namespace) -> bool:
    """Whether anything is said of the form."""
    return any(given is not None for given in (args.packed, args.kv_cache, args.calibration))


def check_others(args: argparse.Namespace, target: str) -> None:
    """Raises InputError for what only this target takes."""
    if args.packed is not None:
        raise InputError(f"--packed is for {ORT_CPU}; leave it out for {target}")
    if args.kv_cache == INT8:
        raise InputError(
            f"{target} keeps keys and values as the bundle computes them: of the backends only "
            f"{ORT_CPU} has an attention that takes them in {INT8}. Leave --kv-cache out."
        )
    if args.calibration is not None:
        raise InputError(
            f"--calibration is for --target {ORT_CPU} --kv-cache {INT8}. Leave it out; a recipe "
            "takes one where a bundle is made: mimo-edge quantize."
        )


def run(bundle: Bundle, args: argparse.Namespace, progress: StageProgress) -> int:
    """Build, with progress, unless it is there. Returns the exit code."""
    given = [f"--{name.replace('_', '-')}" for name in _OTHERS if getattr(args, name)]
    if given:
        raise InputError(f"{given[0]} is for TensorRT engines; leave it out for {ORT_CPU}")
    form, version = BuildForm.of(args), onnxruntime_version()
    if form.calibration is not None:
        scales_of(bundle, form.calibration)  # refused before the place of the build is looked at
    if args.dry_run:
        from mimo_edge.engines.ort.build import most_bytes

        place = place_of(bundle, version, args.engines)
        most = most_bytes(bundle, form.packed)
        if args.json:
            print(json.dumps({"target": ORT_CPU, "place": str(place), "most_bytes": most}))
        else:
            print(f"{ORT_CPU}: would write {place}, at most {size(most)}")
        return 0
    built = build_of(bundle, form, progress, args.engines)
    if args.json:
        print(json.dumps({"target": ORT_CPU, "place": str(built.folder), "bytes": built.bytes}))
    else:
        print(
            f"{built.folder}: {size(built.bytes)}, for ONNX Runtime {version} on this processor, "
            f"{form}"
        )
    return 0


def build_of(
    bundle: Bundle, form: BuildForm, progress: StageProgress, root: Path | None = None
) -> Bundle:
    """The build of a bundle for this machine in a form, made if it is not there. `root` is a folder
    of builds, in place of the cache folder: there it is made anew."""
    version = onnxruntime_version()
    from mimo_edge.engines.ort.build import CHECKING, LOADING, build_bundle, build_costs

    found = find_built(bundle, version) if root is None else None
    if found is not None and found.manifest.built and form.is_of(found.manifest.built):
        return found
    place = place_of(bundle, version, root)
    work = Work(build_costs(bundle, form.packed), progress.work)
    build_bundle(bundle, place, work, packed=form.packed, calibration=form.calibration)
    # hashed once now, and remembered, rather than at the first start
    made = Bundle.open(place, on_progress=lambda done, all: work.reach(CHECKING, done / all))
    work.reach(LOADING, 0)
    with open_backend(ORT_CPU, made) as backend:
        backend.load(list(made.manifest.pieces))
    work.end()
    return made


def _in_words(packed: str, int8_cache: bool) -> str:
    return f"weights packed in {packed}" + (f", keys and values in {INT8}" if int8_cache else "")


def _calibration(args: argparse.Namespace) -> Calibration | None:
    """That of an int8 cache; None where keys and values stay floats."""
    if args.kv_cache != INT8:
        if args.calibration is not None:
            raise InputError(f"--calibration is for --kv-cache {INT8}: give both, or leave it out")
        return None
    if args.calibration is None:
        raise InputError(
            f"--kv-cache {INT8} needs to know how large keys and values become. Find it on a "
            f"bundle of the same checkpoint, in floats or int8: {HOW}."
        )
    return Calibration.load(args.calibration)
