"""`mimo-edge build --target ort-cpu`: a bundle that ONNX Runtime loads fast on this machine."""

import argparse
import json
from functools import partial
from pathlib import Path

import onnxruntime
from mimo_edge.engines.calibration import HOW, Calibration
from mimo_edge.engines.ort.build import build_bundle
from mimo_edge.engines.ort.int8_cache import scales_of
from mimo_edge.runtime.backends.opening import open_backend
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
from mimo_edge.scripts.progress import StageProgress, size

# options of TensorRT builds
_OTHERS = ("recipe", "max_seq", "in_bundle", "strict", "print_trtexec")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what only such a build takes."""
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


def check_others(args: argparse.Namespace, target: str) -> None:
    """Raises InputError for what only this target takes."""
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
    calibration = _calibration(args)
    if calibration is not None:
        scales_of(bundle, calibration)  # refused before the place of the build is looked at
    version = onnxruntime.__version__
    place = place_of(bundle, version, args.engines)
    weights = bundle.data_bytes()
    if args.dry_run:
        if args.json:
            print(json.dumps({"target": ORT_CPU, "place": str(place), "most_bytes": 2 * weights}))
        else:
            print(f"{ORT_CPU}: would write {place}, at most {size(2 * weights)}")
        return 0
    found = find_built(bundle, version) if args.engines is None else None
    built = place
    if found is None or not _same(found, calibration):
        build_bundle(bundle, place, progress.report, calibration=calibration)
        # hashed once now, and remembered, rather than at the first start
        made = Bundle.open(built, on_progress=partial(progress.report, "checking what was written"))
        progress.report("loading every piece", 0, 0)
        with open_backend(ORT_CPU, made) as backend:
            backend.load(list(made.manifest.pieces))
    held = Bundle.open(built, verify=False).bytes
    if args.json:
        print(json.dumps({"target": ORT_CPU, "place": str(built), "bytes": held}))
    else:
        kept = "" if calibration is None else f", keys and values in {INT8}"
        print(f"{built}: {size(held)}, for ONNX Runtime {version} on this processor{kept}")
    return 0


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


def _same(found: Bundle, calibration: Calibration | None) -> bool:
    """Whether a build keeps keys and values as they are asked for."""
    digest = "" if calibration is None else calibration.digest
    return found.manifest.built is not None and found.manifest.built.calibration == digest
