"""`mimo-edge build`: TensorRT engines of a bundle, with or without a GPU."""

import argparse
import json
from pathlib import Path

from engines import recipe
from engines.build import build_engines, estimate, identity_of
from engines.builder import load_module, trtexec_command
from engines.profiles import Limits, profiles
from engines.target import RTX_CAPABILITIES, Target, parse
from runtime.backends import open_backend
from runtime.bundle import PIECES, Bundle
from scripts.progress import StageProgress, size

EPILOG = f"""targets:
  trt-rtx:8.6,8.9,12.0   TensorRT for RTX, ahead of time, no GPU needed;
                         one or more of {", ".join(RTX_CAPABILITIES)}
  trt                    classic TensorRT (Jetson, data centre), on the machine that has the GPU
  ort-cpu, ort-cuda      nothing to build: checks that ONNX Runtime loads every piece

example:
  mimo-edge build bundle --target trt-rtx:8.9 --max-seq 4096 --max-batch 2"""


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
    parser.add_argument("--dry-run", action="store_true", help="say what would be built, and stop")
    parser.add_argument("--print-trtexec", action="store_true", help="print the same as commands")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Build, with progress. Returns the exit code."""
    bundle = Bundle.open(args.bundle)
    if args.target in ("ort-cpu", "ort-cuda"):
        with open_backend(args.target, bundle) as backend:
            backend.load(PIECES)
            print(f"{backend.describe()} loads every piece; there is nothing to build")
        return 0
    target = parse(args.target)
    chosen = recipe.for_bundle(bundle, args.recipe)
    limits = Limits(args.max_seq or bundle.model.context, args.max_batch)
    limits.check(bundle.model.context)
    if args.print_trtexec:
        for piece in PIECES:
            ranges = profiles(bundle, piece, limits)
            print(trtexec_command(target, bundle.path(piece), ranges, limits.max_seq))
        return 0
    if args.dry_run:
        _print_plan(bundle, target, limits, chosen.name)
        return 0
    trt = load_module(target)
    identity = identity_of(bundle, chosen, target, trt.__version__, limits)
    with StageProgress() as progress:

        def report(piece: str, phase: str, done: int, total: int) -> None:
            if phase in ("Building engine", "kept"):
                progress.report(f"building {piece}", done, total, "steps")

        folder, manifest = build_engines(bundle, identity, target, trt, limits, report)
    if args.json:
        print(manifest.to_json(), end="")
        return 0
    print(folder)
    print(f"{'piece':18} {'engine':>9} {'build':>8}")
    for piece, spec in manifest.plans.items():
        print(f"{piece:18} {size(spec.bytes):>9} {manifest.seconds[piece]:6.1f} s")
    return 0


def _print_plan(bundle: Bundle, target: Target, limits: Limits, name: str) -> None:
    rows = estimate(bundle, target)
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
    print(json.dumps({"engine_bytes": sum(r.engine_bytes for r in rows)}))
