"""`mimo-edge calibrate`: what the layers of a model read and keep, found on the real pipeline."""

import argparse
from functools import partial
from pathlib import Path

from mimo_edge.engines.calibration import CACHE
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.scripts.calibrating import LONGEST, Work, calibrate, lines, recordings
from mimo_edge.scripts.progress import StageProgress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Every recording is transcribed, answered with speech, and made again from its codes; "
        "every text is\nspoken, and answered with text. The statistics belong to the checkpoint: "
        "a bundle of the recipe int8\nmay run in place of a float one that is too large for this "
        "machine.\n\nexample:\n  mimo-edge calibrate bundle --audio recordings --text lines.txt "
        "-o calib.npz\n  mimo-edge quantize bundle --recipe int8-w8a8 --calibration calib.npz "
        "-o small"
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="not made with a calibration")
    parser.add_argument(
        "--audio",
        metavar="DIR",
        type=Path,
        help="a folder of recordings of speech, in any language",
    )
    parser.add_argument("--text", metavar="FILE", type=Path, help="texts to speak, one a line")
    parser.add_argument("-o", "--output", metavar="CALIB.npz", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument(
        "--max-new",
        metavar="N",
        type=int,
        default=LONGEST,
        help=f"patches of an answer at most (default: {LONGEST}, which is 15 seconds of speech)",
    )
    parser.add_argument("--threads", type=int, help="of the CPU (default: all)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what is done if this is interrupted, and take over that of the last time",
    )
    parser.add_argument("--force", action="store_true", help="replace CALIB.npz if it exists")


def run(args: argparse.Namespace) -> int:
    """Calibrate, with progress. Returns the exit code."""
    if args.audio is None and args.text is None:
        raise InputError("there is nothing to read: give --audio DIR, --text FILE, or both")
    if args.output.suffix != ".npz":
        raise InputError(f"{args.output} must end in .npz, which is what it will be")
    if args.output.exists() and not args.force:
        raise InputError(f"{args.output} exists. Choose another name, or give --force.")
    audio = [] if args.audio is None else recordings(args.audio)
    work = Work(args.audio, audio, [] if args.text is None else lines(args.text), args.seed)
    with StageProgress() as progress:
        bundle = Bundle.open(
            args.bundle, on_progress=partial(progress.report, "checking the bundle")
        )
    with StageProgress() as progress:
        found = calibrate(
            bundle,
            work,
            args.output,
            longest=args.max_new,
            threads=args.threads,
            resume=args.resume,
            on_progress=partial(progress.report, unit="recordings and texts"),
        )
    about = found.about
    spoken, written = (
        ", ".join(f"{count} {script}" for script, count in sorted(counts.items())) or "none"
        for counts in (about.spoken, about.texts)
    )
    positions = " and ".join(f"{count} {kind}" for kind, count in about.positions.items())
    layers = sum(not name.startswith(CACHE) for name in found.layers)
    print(f"{args.output}: {layers} layers over {positions} positions")
    print(f"recordings: {spoken} ({sum(about.recordings.values()):.1f} s); texts: {written}")
    return 0
