"""`mimo-edge quantize`: a float bundle becomes a quantised one, without torch."""

import argparse
from functools import partial
from pathlib import Path

from mimo_edge.engines import recipe
from mimo_edge.engines.calibration import Calibration
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.scripts.progress import StageProgress, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "`mimo-edge recipe list` names the recipes, `mimo-edge recipe show NAME --for BUNDLE` says "
        "what one will weigh.\n\nexample:\n  mimo-edge quantize bundle --recipe int4-edge -o small"
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="in fp32, fp16 or bf16")
    parser.add_argument("--recipe", metavar="NAME", required=True, help="a preset, or a .toml file")
    parser.add_argument(
        "--calibration", metavar="FILE", type=Path, help="for recipes that need it: see `calibrate`"
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep finished pieces if this is interrupted, and take over those of the last time",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Quantise, with progress. Returns the exit code."""
    chosen = recipe.load(args.recipe)
    calibration = None if args.calibration is None else Calibration.load(args.calibration)
    recipe.check_calibration(chosen, calibration)  # before a large bundle is hashed
    with StageProgress() as progress:
        bundle = Bundle.open(
            args.bundle, on_progress=partial(progress.report, "checking the bundle")
        )
        bundle.check_whole("quantise")
        quantize_bundle(
            bundle,
            chosen,
            args.output,
            calibration=calibration,
            resume=args.resume,
            force=args.force,
            on_progress=progress.work,
        )
    before, after = (
        sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        for folder in (args.bundle, args.output)
    )
    print(f"{args.output}: {chosen.name}, {size(after)} where the float bundle has {size(before)}")
    return 0
