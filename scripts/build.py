"""`mimo-edge build`: a bundle made ready for one backend. TensorRT needs no GPU for it."""

import argparse
import dataclasses
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

from mimo_edge.engines import recipe
from mimo_edge.engines.build import build_engines, engine_home, identity_of
from mimo_edge.engines.builder import INTERRUPTED, StillBuilding, load_module
from mimo_edge.engines.bundle_recipe import BundleRecipe, for_bundle
from mimo_edge.engines.planner import Estimate, estimate
from mimo_edge.engines.profiles import Limits
from mimo_edge.engines.runnable import check_runnable
from mimo_edge.engines.target import RTX_CAPABILITIES, Target, parse
from mimo_edge.engines.trtexec import commands, write_lowered
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.bundle.built import ORT_CPU
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import EngineManifest
from mimo_edge.runtime.bundle.manifest import PIECES
from mimo_edge.scripts import build_ort
from mimo_edge.scripts.machine import memory_bytes
from mimo_edge.scripts.progress import StageProgress, size
from mimo_edge.scripts.signals import code_of

ORT_CUDA = "ort-cuda"
EPILOG = f"""targets:
  trt-rtx:8.6,8.9,12.0   TensorRT for RTX, ahead of time, no GPU needed;
                         one or more of {", ".join(RTX_CAPABILITIES)}
  trt                    classic TensorRT (Jetson, data centre), on the machine that has the GPU
  ort-cpu                ONNX Runtime on a processor like the one here: starts fast, runs faster
  ort-cuda               nothing to build: checks that ONNX Runtime loads every piece

example:
  mimo-edge build bundle --target trt-rtx:8.9 --max-seq 4096 --max-batch 2
  mimo-edge build bundle --target ort-cpu --kv-cache int8 --calibration calib.npz"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--target", required=True, help="see below")
    parser.add_argument(
        "--recipe", metavar="NAME", help=f"{', '.join(recipe.names())}; default: the bundle's own"
    )
    parser.add_argument(
        "--max-seq", metavar="N", type=int, help="patches a row can hold (default: the context)"
    )
    parser.add_argument("--max-batch", metavar="N", type=int, default=1, help="rows (default: 1)")
    parser.add_argument(
        "--engines", metavar="DIR", type=Path, help="where builds lie (default: the cache folder)"
    )
    parser.add_argument(
        "--in-bundle",
        action="store_true",
        help="put them into the bundle; `run` uses those only with --trust-engines",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="fail on every warning of TensorRT that is not known to be harmless",
    )
    build_ort.add_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be built, and stop")
    parser.add_argument(
        "--print-trtexec",
        action="store_true",
        help="write the graphs as TensorRT gets them, and print the builds as commands",
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Build, with progress. Returns the exit code."""
    with StageProgress() as progress:
        bundle = Bundle.open(
            args.bundle, on_progress=partial(progress.report, "checking the bundle")
        )
        bundle.check_whole("build")
        if args.target == ORT_CPU:
            return build_ort.run(bundle, args, progress)
        build_ort.check_others(args, args.target)
        if args.target == ORT_CUDA:
            return _check_sessions(bundle, args.target, args.dry_run, args.json)
        target = parse(args.target)
        chosen = for_bundle(bundle, args.recipe)
        check_runnable(bundle, target)
        context = bundle.model.context
        limits = Limits(context if args.max_seq is None else args.max_seq, args.max_batch)
        limits.check(context)
        home = engine_home(bundle, args.engines, args.in_bundle)
        if args.print_trtexec:
            folder = write_lowered(bundle, limits, home)
            progress.note(f"the graphs that these commands read are in {folder}")
            print("\n".join(commands(bundle, target, limits, folder)))
            return 0
        if args.dry_run:
            _print_plan(estimate(bundle), target, limits, chosen.name, args.json)
            return 0
        folder, manifest = engines_of(bundle, target, chosen, limits, home, progress, args.strict)
    if args.json:
        print(manifest.to_json(), end="")
        return 0
    print(folder)
    print(f"{'piece':18} {'engine':>9} {'build':>8}")
    for piece, made in manifest.plans.items():
        print(f"{piece:18} {size(made.file.bytes):>9} {made.seconds:6.1f} s")
    return 0


def engines_of(
    bundle: Bundle,
    target: Target,
    chosen: BundleRecipe,
    limits: Limits,
    home: Path,
    progress: StageProgress,
    strict: bool = False,
) -> tuple[Path, EngineManifest]:
    """Build what is not there yet, and say how far it is and what TensorRT warned of.

    Interrupted while TensorRT cannot be stopped, it ends the process.
    """
    trt = load_module(target)
    if target.product == "trt":
        target = target.on_gpu(_capability_here())
        check_runnable(bundle, target)  # of this GPU, too
    estimates = estimate(bundle)
    largest, memory = max(estimates, key=lambda row: row.memory_bytes), memory_bytes()
    if memory is not None and largest.memory_bytes > memory:
        progress.note(
            f"{largest.piece} needs about {size(largest.memory_bytes)} of memory to build, "
            f"this machine has {size(memory)}: it may be killed. Nothing that is finished by "
            "then is lost; a smaller precision needs less."
        )
    identity = identity_of(bundle, chosen, target, trt, limits)
    times = {row.piece: row.seconds for row in estimates}

    def report(piece: str, phase: str, done: int, total: int) -> None:
        if phase == INTERRUPTED:
            progress.note(
                f"stopping: TensorRT has to end its present step of {piece} first. Finished "
                "pieces are kept. Ctrl-C again leaves at once."
            )
        if phase in ("parsing", "kept", "Building engine"):  # the others are nested in the last
            if phase == "kept":
                stage = f"kept {piece}"
            else:
                left = sum(times[name] for name in PIECES[PIECES.index(piece) :])
                stage = f"building {piece}, about {times[piece]:.0f} s of {left:.0f} s left"
            progress.report(stage, done, total, "steps")

    try:
        folder, manifest = build_engines(
            bundle, identity, target, trt, limits, home, report, strict=strict
        )
    except StillBuilding as interruption:
        progress.end()
        _leave(interruption)
    for piece, plan in manifest.plans.items():
        if plan.warnings:
            progress.note(
                f"TensorRT warned of {piece}; {folder / piece}.log has what it said "
                f"({plan.warnings} messages that are not known to be harmless)"
            )
    return folder, manifest


def _leave(interruption: StillBuilding) -> NoReturn:
    """End the process: nothing is being written, and TensorRT's thread cannot be stopped."""
    try:
        print("mimo-edge: interrupted", file=sys.stderr, flush=True)
    finally:
        os._exit(code_of(interruption))


def _check_sessions(bundle: Bundle, target: str, dry_run: bool, as_json: bool) -> int:
    """ONNX Runtime reads the bundle as it is; all there is to do is to see that it can."""
    described, pieces = target, [piece for piece in PIECES if piece in bundle.manifest.pieces]
    if not dry_run:
        with open_backend(target, bundle) as backend:
            backend.load(pieces)
            described = backend.describe()
    if as_json:
        print(json.dumps({"backend": described, "pieces": pieces, "built": []}))
    elif dry_run:
        print(f"{target} builds nothing: it would be seen to that every piece loads")
    else:
        print(f"{described} loads every piece; there is nothing to build")
    return 0


def _capability_here() -> str:
    device = CudaDevice()
    try:
        return device.capability()
    finally:
        device.close()


def _print_plan(
    rows: list[Estimate], target: Target, limits: Limits, name: str, as_json: bool
) -> None:
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
        return
    print(
        f"{target.product} for {', '.join(target.capabilities) or 'the GPU here'}, recipe {name}, "
        f"{limits.max_batch} rows of {limits.max_seq} patches"
    )
    print(f"{'piece':18} {'weights':>9} {'engine':>9} {'memory':>9} {'time':>8}   (estimates)")
    for row in rows:
        print(
            f"{row.piece:18} {size(row.weight_bytes):>9} {size(row.engine_bytes):>9} "
            f"{size(row.memory_bytes):>9} {row.seconds:6.0f} s"
        )
    print(
        f"{'all':18} {size(sum(r.weight_bytes for r in rows)):>9} "
        f"{size(sum(r.engine_bytes for r in rows)):>9} "
        f"{size(max(r.memory_bytes for r in rows)):>9} {sum(r.seconds for r in rows):6.0f} s"
    )
