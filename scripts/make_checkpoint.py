"""`mimo-edge make-checkpoint`: a random checkpoint pair in the layout of the released one.

For trying the pipeline without the real weights, at their size or at that of a test.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.weights import EMPTY_TOKEN, upstream_tensors
from mimo_edge.runtime.bundle.errors import DISK_FULL, InputError, ResourceError, no_room
from mimo_edge.runtime.bundle.folders import (
    MARK,
    left_unfinished,
    partial_of,
    recover,
    remove_folder,
    take_place,
)
from mimo_edge.runtime.bundle.lock import locked
from mimo_edge.scripts.checkpoint.presets import PRESETS, Config, Preset
from mimo_edge.scripts.checkpoint.random_weights import RandomWeights
from mimo_edge.scripts.checkpoint.safetensors_stream import Layout, Shape, write_tensors
from mimo_edge.scripts.checkpoint.small_tokenizer import write_tokenizer
from mimo_edge.scripts.progress import ByteProgress, size

LANGUAGE_MODEL, AUDIO_TOKENIZER = "language_model", "audio_tokenizer"
Model = LanguageModel | AudioTokenizer
_SPARE_BYTES = 64 << 20  # headers, configs, tokenizer files, and room for everyone else


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
    with _new_folder(out, total + _SPARE_BYTES, force) as folder, ByteProgress(total) as progress:
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


@contextmanager
def _new_folder(out: Path, needed: int, force: bool) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end of the block, or is removed."""
    _check_replaceable(out, force)
    partial = partial_of(out)
    with _typed_errors(out, needed):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < needed:
            raise ResourceError(
                f"{out} needs {size(needed)}, its disk has {size(free)} free. Free "
                f"{size(needed - free)}, choose a folder on another disk, or cut with --layers."
            )
        with locked(out):
            recover(out)
            _check_replaceable(out, force)
            if partial.is_dir() and left_unfinished(partial):
                remove_folder(partial)
            partial.mkdir()
            try:
                (partial / MARK).touch()
                yield partial
                take_place(partial, out)
                (out / MARK).unlink()
            finally:
                remove_folder(partial)


@contextmanager
def _typed_errors(out: Path, needed: int) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise InputError(
            f"{error.filename} is in the way: no run of this command left it. Move it away, or "
            "choose another name."
        ) from error
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceError(
                f"{out} cannot be written ({error.strerror}); {size(needed)} are needed. "
                f"{no_room(error)} --layers makes it smaller."
            ) from error
        raise InputError(f"cannot write {out} ({error}). Choose another folder.") from error


def _check_replaceable(out: Path, force: bool) -> None:
    """Refuse to overwrite, and even with `force` refuse what this command did not write."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} exists and is not a folder. Choose another name.")
    inside = sorted(p.name for p in out.iterdir()) if out.exists() else []
    foreign = [name for name in inside if name not in (LANGUAGE_MODEL, AUDIO_TOKENIZER)]
    if foreign:
        raise InputError(f"{out} holds {foreign[0]}, no checkpoint of ours. Choose a new folder.")
    if inside and not force:
        raise InputError(f"{out} already holds a checkpoint. Choose a new folder, or pass --force.")
