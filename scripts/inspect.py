"""`mimo-edge inspect`: what is in a bundle, and how data flows through it."""

import argparse
import dataclasses
import json
from contextlib import suppress
from pathlib import Path

from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine_folders import INSIDE, finished, home_of
from mimo_edge.runtime.bundle.errors import EnvironmentProblem
from mimo_edge.runtime.bundle.manifest import Manifest, PieceSpec, TensorSpec
from mimo_edge.scripts.backend_arguments import verify
from mimo_edge.scripts.progress import size

FLOW = """
  wav --> [mel] --> [tokenizer_encoder] --> codes --+
                                                    v
  text --> tokenizer --> text ids ----------> [patch_encoder] --> embeddings
                                                                     |
                  +------------ one patch a step ------------+       v
                  |                                          |   [backbone] <-> keys, values
                  v                                          |       |
           next embeddings <-- text id, codes <---------+    |       +--> scores --> text id
                                                        |    |       |
                                                        +--[patch_decoder] <-- uniform numbers
                                                        v
                                     codes --> [tokenizer_decoder] --> wav
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--no-verify", action="store_true", help="skip hashing the files")
    parser.add_argument("--json", action="store_true", help="the manifest as it is")
    parser.add_argument(
        "--sample-inputs",
        metavar="DIR",
        type=Path,
        help="write real inputs and ranges of shapes of each piece, for Polygraphy",
    )


def run(args: argparse.Namespace) -> int:
    """Print the bundle. Returns the exit code."""
    if not args.no_verify:
        verify(args.bundle)
    bundle = Bundle.open(args.bundle, verify=not args.no_verify)
    if args.sample_inputs is not None:
        from mimo_edge.scripts.sample_inputs import write_sample_inputs  # ONNX Runtime

        print("\n".join(write_sample_inputs(bundle, args.sample_inputs)))
        return 0
    if args.json:
        print(json.dumps(dataclasses.asdict(bundle.manifest), indent=1, ensure_ascii=False))
        return 0
    manifest, model = bundle.manifest, bundle.model
    checked = "sizes only" if args.no_verify else "all hashes verified"
    print(f"{bundle.folder}: schema {manifest.schema}, {size(bundle.bytes)}, {checked}")
    print(f"{manifest.architecture}, states in {manifest.activation_dtype}")
    print(f"exported by {', '.join(f'{k} {v}' for k, v in manifest.tools.items())}")
    print(f"source checkpoint {manifest.source[:16]}, bundle {bundle.identity[:16]}")
    if bundle.pack is not None:
        by = ", ".join(f"{k} {v}" for k, v in bundle.pack.tools.items())
        print(f"packed from that bundle for {bundle.pack.target} by {by}, recipe {manifest.recipe}")
    print()
    print(
        f"{bundle.member.title}: {model.layers} layers of width {model.hidden_size}, "
        f"vocabulary {model.vocab_size}, context {model.context} patches"
    )
    print(
        f"patches of {model.group_size} frames x {model.n_q} codebooks, delays "
        f"{'-'.join(map(str, model.delays))}, {model.sampling_rate} Hz\n"
    )
    print(f"{'piece':18} {'computes':9} {'size':>8}  inputs -> outputs")
    for name, piece in manifest.pieces.items():
        stored = "engine"
        if piece.file in bundle.files:
            stored = size(bundle.files[piece.file].bytes + bundle.weight_bytes(name))
        print(f"{name:18} {piece.compute:9} {stored:>8}  {_ports(piece)}")
    for data, names in _shared(manifest).items():
        print(f"{', '.join(names)}: weights in one file, {data}")
    print(FLOW)
    _print_engines(bundle)
    return 0


def _shared(manifest: Manifest) -> dict[str, list[str]]:
    """Data files that hold the weights of several pieces."""
    found: dict[str, list[str]] = {}
    for name, piece in manifest.pieces.items():
        found.setdefault(piece.data, []).append(name)
    return {data: names for data, names in found.items() if len(names) > 1}


def _print_engines(bundle: Bundle) -> None:
    """Where engines of the bundle lie; none of them is loaded."""
    with suppress(EnvironmentProblem):  # without a home folder there is no cache folder
        for folder in finished(home_of(bundle)):
            print(f"engines: {folder}")
    for folder in finished(bundle.folder / INSIDE):
        print(f"engines: {folder} (in the bundle: used only with --trust-engines)")


def _ports(piece: PieceSpec) -> str:
    return f"{_side(piece.inputs)} -> {_side(piece.outputs)}"


def _side(ports: tuple[TensorSpec, ...]) -> str:
    """Ports in short; the many of the cache as one."""
    shown = [p for p in ports if not p.name.startswith(("past_k", "past_v", "present_"))]
    texts = [f"{p.name}[{','.join(map(str, p.axes))}]" for p in shown]
    cached = len(ports) - len(shown)
    return ", ".join(texts) + (f", cache x {cached}" if cached else "")
