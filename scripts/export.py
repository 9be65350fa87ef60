"""`mimo-edge export`: a checkpoint pair becomes a bundle."""

import argparse
from pathlib import Path

from mimo_edge.engines.calibration import Calibration
from mimo_edge.engines.recipe import check_calibration, check_export, load
from mimo_edge.export.exporter import DTYPES, export_bundle
from mimo_edge.export.sources import Sources
from mimo_edge.runtime.bundle.engine_folders import INSIDE
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.scripts.hub import AUDIO_TOKENIZER, folder_of, is_id
from mimo_edge.scripts.progress import StageProgress, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "examples:\n  mimo-edge export MiMo-Audio-7B-Instruct "
        "--audio-tokenizer MiMo-Audio-Tokenizer -o bundle --dtype fp16\n"
        "  mimo-edge export XiaomiMiMo/MiMo-Audio-7B-Instruct -o bundle --dtype fp16"
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="language model: a folder, or its id on the Hub"
    )
    parser.add_argument(
        "--audio-tokenizer",
        metavar="DIR",
        help=f"a folder, or an id on the Hub (default, if CHECKPOINT is an id: {AUDIO_TOKENIZER})",
    )
    parser.add_argument(
        "--text-tokenizer", metavar="DIR", type=Path, help="default: the CHECKPOINT folder"
    )
    parser.add_argument("-o", "--output", metavar="BUNDLE", type=Path, required=True)
    parser.add_argument("--recipe", metavar="NAME", help="see `mimo-edge recipe list`")
    parser.add_argument(
        "--calibration", metavar="FILE", type=Path, help="for recipes that need it: see `calibrate`"
    )
    parser.add_argument(
        "--dtype",
        choices=sorted(DTYPES),
        help="what is computed in, where the recipe leaves it open (default: fp32)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep finished pieces if this export is interrupted, and take over those of the last",
    )
    parser.add_argument(
        "--with-speech",
        action="store_true",
        help="export what makes speech, too, of a model that was trained to listen only",
    )
    parser.add_argument("--force", action="store_true", help="replace BUNDLE if it exists")


def run(args: argparse.Namespace) -> int:
    """Export, with progress. Returns the exit code."""
    audio_tokenizer = args.audio_tokenizer
    if audio_tokenizer is None:
        if not is_id(args.checkpoint):
            raise InputError(
                "say which audio tokenizer belongs to it: --audio-tokenizer DIR, the folder of "
                "MiMo-Audio-Tokenizer"
            )
        audio_tokenizer = AUDIO_TOKENIZER
    checkpoint = folder_of(args.checkpoint)
    text = args.text_tokenizer or checkpoint
    sources = Sources.open(checkpoint, folder_of(audio_tokenizer), text)
    chosen = load(args.recipe or args.dtype or "fp32")
    named = chosen.components["backbone"].compute
    dtype = args.dtype or named or "fp32"
    check_export(chosen, dtype)
    calibration = None if args.calibration is None else Calibration.load(args.calibration)
    check_calibration(chosen, calibration)
    speech = sources.exports_speech(args.with_speech)
    weights = sources.stored_bytes(dtype, chosen, speech)
    with StageProgress() as progress:
        progress.note(
            f"{size(weights)} of weights by recipe {chosen.name}; needs that much disk, and about "
            f"{size(sources.memory_bytes(DTYPES[dtype], chosen))} of memory"
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
            dtype,
            chosen,
            calibration=calibration,
            resume=args.resume,
            force=args.force,
            speech=args.with_speech,
            on_progress=progress.work,
        )
    print(f"{args.output}: bundle with {size(weights)} of weights by recipe {chosen.name}")
    return 0
