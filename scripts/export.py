"""`mimo-edge export`: a checkpoint pair becomes a bundle."""

import argparse
from pathlib import Path

from mimo_edge.export.exporter import DTYPES, Sources, export_bundle
from mimo_edge.runtime.bundle.engine_folders import INSIDE
from mimo_edge.scripts.progress import StageProgress, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "example:\n  mimo-edge export MiMo-Audio-7B-Instruct "
        "--audio-tokenizer MiMo-Audio-Tokenizer -o bundle --dtype fp16"
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="language model folder")
    parser.add_argument("--audio-tokenizer", metavar="DIR", type=Path, required=True)
    parser.add_argument(
        "--text-tokenizer", metavar="DIR", type=Path, help="default: the CHECKPOINT folder"
    )
    parser.add_argument("-o", "--output", metavar="BUNDLE", type=Path, required=True)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="default: fp32")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep finished pieces if this export is interrupted, and take over those of the last",
    )
    parser.add_argument("--force", action="store_true", help="replace BUNDLE if it exists")


def run(args: argparse.Namespace) -> int:
    """Export, with progress. Returns the exit code."""
    text = args.text_tokenizer or args.checkpoint
    sources = Sources.open(args.checkpoint, args.audio_tokenizer, text)
    weights = sources.weight_bytes(DTYPES[args.dtype])
    with StageProgress() as progress:
        progress.note(
            f"{size(weights)} of weights in {args.dtype}; needs that much disk, and about "
            f"{size(sources.memory_bytes(DTYPES[args.dtype]))} of memory"
        )
        engines = args.output / INSIDE
        if args.force and engines.is_dir():
            progress.note(
                f"{engines} goes with the bundle that is replaced. Engines in the cache folder "
                "stay; those of pieces that do not change are taken over by the next build"
            )
        export_bundle(
            sources,
            args.output,
            args.dtype,
            resume=args.resume,
            force=args.force,
            on_progress=progress.report,
        )
    print(f"{args.output}: bundle with {size(weights)} of weights in {args.dtype}")
    return 0
