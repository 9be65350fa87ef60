"""`mimo-edge make-checkpoint`: a random checkpoint pair in the layout of the released one.

For trying the pipeline without the real weights, at their size or at that of a test.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.weights import EMPTY_TOKEN, upstream_tensors
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.scripts.checkpoint.pair_folder import AUDIO_TOKENIZER, LANGUAGE_MODEL, new_pair
from mimo_edge.scripts.checkpoint.presets import PRESETS, Config, Preset
from mimo_edge.scripts.checkpoint.random_weights import RandomWeights
from mimo_edge.scripts.checkpoint.safetensors_stream import Layout, Shape, write_tensors
from mimo_edge.scripts.checkpoint.small_tokenizer import write_tokenizer
from mimo_edge.scripts.progress import ByteProgress, size

Model = LanguageModel | AudioTokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    parser.add_argument("--preset", choices=sorted(PRESETS), required=True, help="sizes and dtype")
    parser.add_argument(
        "--layers", metavar="N", type=int, help="at most N layers in every stack (default: all)"
    )
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="default: 0")
    parser.add_argument("--force", action="store_true", help="replace the checkpoint in OUT")


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and say what is in it. Returns the exit code."""
    for name, value, least in (("--layers", args.layers, 1), ("--seed", args.seed, 0)):
        if value is not None and value < least:
            raise InputError(f"{name} {value} is too small: give {least} or more")
    preset = PRESETS[args.preset] if args.layers is None else PRESETS[args.preset].cut(args.layers)
    written = make_checkpoint(args.out, preset, args.seed, args.force)
    print(f"{args.out}: {args.preset} checkpoint, {size(written)} of random weights")
    return 0


def make_checkpoint(out: Path, preset: Preset, seed: int = 0, force: bool = False) -> int:
    """Write OUT/language_model and OUT/audio_tokenizer; returns the bytes of their tensors.

    Raises InputError for a folder that cannot be used, ResourceError if the disk is too small. OUT
    appears only when it is whole; an interruption leaves nothing behind.
    """
    models: dict[str, Model] = {
        LANGUAGE_MODEL: language_model(preset),
        AUDIO_TOKENIZER: audio_tokenizer(preset),
    }
    layouts = {name: Layout(shapes_of(model), preset.dtype) for name, model in models.items()}
    total = sum(layout.total_bytes for layout in layouts.values())
    with (
        new_pair(out, total, force, "--layers makes it smaller.") as folder,
        ByteProgress(total) as progress,
    ):
        for name, layout in layouts.items():
            part = folder / name
            part.mkdir()
            config: Config = getattr(preset, name)
            (part / "config.json").write_text(
                json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
            )
            weights = RandomWeights(layout.shapes, _empty_rows(models[name]), seed)
            write_tensors(part, layout, weights.chunks, progress.add)
        write_tokenizer(folder / LANGUAGE_MODEL, preset.specials)
    return total


def language_model(preset: Preset) -> LanguageModel:
    """The preset's language model without storage, on the meta device."""
    config = LanguageModelConfig.from_dict(preset.language_model)
    with torch.device("meta"):
        return LanguageModel(config, preset.specials[EMPTY_TOKEN])


def audio_tokenizer(preset: Preset) -> AudioTokenizer:
    """The preset's audio tokenizer without storage, on the meta device."""
    with torch.device("meta"):
        return AudioTokenizer(AudioTokenizerConfig.from_dict(preset.audio_tokenizer))


def shapes_of(model: Model) -> dict[str, Shape]:
    """Upstream's tensor name -> shape, in the order of the model."""
    states = {piece: piece.state_dict() for piece in model.pieces()}
    places = upstream_tensors(model.pieces())
    return {name: tuple(states[p][local].shape) for name, [(p, local), *_] in places.items()}


def _empty_rows(model: Model) -> Mapping[str, int]:
    """The heads' tensors -> the row of the id that stands for "no text here" or "no code here"."""
    if not isinstance(model, LanguageModel):
        return {}
    codes = enumerate(model.config.speech_zeroemb_idx)
    rows = {f"local_transformer_lm_heads.{k}.weight": empty for k, empty in codes}
    return rows | {"lm_head.weight": model.empty_id}
