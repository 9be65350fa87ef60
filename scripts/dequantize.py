"""`mimo-edge dequantize`: a quantised bundle becomes a checkpoint pair again.

In the released layout, with the numbers that the bundle's codes stand for. So any program that runs
the checkpoint, the reference here or upstream's own, shows what the weights lost, apart from how a
backend computes with them.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mimo_edge.engines.dequantized import StoredWeight, stored_weights
from mimo_edge.export.sources import Sources, tensor_shapes
from mimo_edge.export.weights import STORED_DTYPES
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.tensor_files import TensorFiles
from mimo_edge.mimo_ref.weights import upstream_name
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.dtypes import PRECISIONS
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.scripts.checkpoint.pair_folder import AUDIO_TOKENIZER, LANGUAGE_MODEL, new_pair
from mimo_edge.scripts.checkpoint.safetensors_stream import Layout, write_tensors
from mimo_edge.scripts.progress import ByteProgress, StageProgress, size

_SLICE = 1 << 24  # numbers of a tensor that are copied at a time
# what holds the tensors, as the graphs call it
LANGUAGE_OWNERS = ("patch_encoder", "backbone", "patch_decoder")
AUDIO_OWNERS = ("encoder", "decoder")  # the codebooks are as they were


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "example: what the weights of a build lose, apart from its arithmetic\n"
        "  mimo-edge dequantize small --checkpoint MiMo-Audio-7B-Instruct "
        "--audio-tokenizer MiMo-Audio-Tokenizer -o widened\n"
        "  mimo-edge validate small --against widened/language_model "
        "--audio-tokenizer widened/audio_tokenizer --audio *.flac -o report"
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument(
        "--checkpoint", metavar="DIR", type=Path, required=True, help="that it was made from"
    )
    parser.add_argument("--audio-tokenizer", metavar="DIR", type=Path, required=True)
    parser.add_argument(
        "--text-tokenizer", metavar="DIR", type=Path, help="default: the --checkpoint folder"
    )
    parser.add_argument(
        "--dtype",
        choices=sorted(PRECISIONS),
        help="of the numbers (default: that of each checkpoint, which rounds them again)",
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True)
    parser.add_argument("--force", action="store_true", help="replace the checkpoint in OUT")


def run(args: argparse.Namespace) -> int:
    """Write the pair, with progress. Returns the exit code."""
    text = args.text_tokenizer or args.checkpoint
    sources = Sources.open(args.checkpoint, args.audio_tokenizer, text)
    with StageProgress() as progress:
        bundle = Bundle.open(
            args.bundle, on_progress=partial(progress.report, "checking the bundle")
        )
        source = sources.fingerprint(partial(progress.report, "hashing the checkpoints"))
    if source != bundle.manifest.source:
        raise InputError(
            f"{args.bundle} was not made from {args.checkpoint}, {args.audio_tokenizer} and the "
            f"text tokenizer in {text}. Give those that it was exported from."
        )
    written = dequantize(bundle, sources, args.output, args.dtype, args.force)
    print(f"{args.output}: the weights of {args.bundle} as a checkpoint, {size(written)}")
    return 0


def dequantize(
    bundle: Bundle, sources: Sources, out: Path, dtype: str | None = None, force: bool = False
) -> int:
    """Write OUT/language_model and OUT/audio_tokenizer; returns the bytes of their tensors.

    Matrices and vectors are the bundle's, all else is the checkpoints' that it was made of.
    Raises InputError for a build, and as `new_pair` does.
    """
    if bundle.manifest.built is not None:
        raise InputError(f"{bundle.folder} is a build. Give the bundle that it was made of.")
    stored = stored_weights(bundle)
    with torch.device("meta"):
        lm = LanguageModel(sources.language_model, 0)
        audio = AudioTokenizer(sources.audio_tokenizer)
    language_files, audio_files = sources.tensors
    parts = {
        LANGUAGE_MODEL: _Part(language_files, lm, LANGUAGE_OWNERS, stored, dtype),
        AUDIO_TOKENIZER: _Part(audio_files, audio, AUDIO_OWNERS, stored, dtype),
    }
    total = sum(part.layout.total_bytes for part in parts.values())
    with (
        new_pair(out, total, force, "--dtype fp16 takes half of fp32.") as folder,
        ByteProgress(total) as progress,
    ):
        for name, part in parts.items():
            (folder / name).mkdir()
            shutil.copyfile(part.files.folder / "config.json", folder / name / "config.json")
            write_tensors(folder / name, part.layout, part.chunks, progress.add)
        for path in sources.text_files:
            shutil.copyfile(path, folder / LANGUAGE_MODEL / path.name)
    return total


class _Part:
    """One of the two checkpoints: its own tensors, and those that the bundle has in their place."""

    def __init__(
        self,
        files: TensorFiles,
        model: LanguageModel | AudioTokenizer,
        owners: tuple[str, ...],
        stored: Mapping[str, StoredWeight],
        dtype: str | None,
    ) -> None:
        self.files, shapes = files, tensor_shapes(model)
        self.stored = {  # by their names in the checkpoint, in place of those in the graphs
            upstream_name(getattr(model, owner), local): stored[f"{owner}.{local}"]
            for owner in owners
            for local in getattr(model, owner).state_dict()
            if f"{owner}.{local}" in stored
        }
        first = next(iter(shapes))
        own = STORED_DTYPES[files.where[first].get_slice(first).get_dtype()]
        chosen = own if dtype is None else getattr(torch, PRECISIONS[dtype].name)
        self.layout = Layout(shapes, chosen)

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        """The numbers of a tensor in float32, in order."""
        if name in self.stored:
            yield from self.stored[name].rows()
            return
        for part in self.files.read(name).flatten().split(_SLICE):
            yield part.float().numpy()
