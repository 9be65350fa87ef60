"""The same builds as command lines of NVIDIA's own tool, for those who want to build by hand."""

import shlex
from pathlib import Path

import onnx
from mimo_edge.engines.lowering import lower
from mimo_edge.engines.profiles import Limits, profiles
from mimo_edge.engines.target import Target
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import Profile
from mimo_edge.runtime.bundle.manifest import PIECES

TOOLS = {"trt-rtx": "tensorrt_rtx", "trt": "trtexec"}


def write_lowered(bundle: Bundle, limits: Limits, home: Path) -> Path:
    """The graphs as TensorRT gets them, beside links to their weights: the tool cannot lower them.

    They lie in a folder of `home`.
    """
    folder = home / f"lowered-s{limits.max_seq}"
    folder.mkdir(parents=True, exist_ok=True)
    for piece in PIECES:
        path = bundle.path(piece)
        model = lower(onnx.load(path, load_external_data=False), limits.max_seq)
        (folder / path.name).write_bytes(model.SerializeToString(deterministic=True))
        data = folder / bundle.piece(piece).data
        if not data.is_symlink():
            data.symlink_to(path.with_name(data.name).resolve())
    return folder


def commands(bundle: Bundle, target: Target, limits: Limits, folder: Path) -> list[str]:
    """One command for each piece, to be run anywhere; `folder` holds the lowered graphs."""
    return [
        _command(target, folder / bundle.path(piece).name, profiles(bundle, piece, limits)[0])
        for piece in PIECES
    ]


def _command(target: Target, graph: Path, shapes: Profile) -> str:
    words = [
        TOOLS[target.product],
        f"--onnx={graph}",
        f"--saveEngine={graph.stem}.plan",
        *(["--stronglyTyped"] if target.product == "trt" else []),  # RTX knows nothing else
        "--noTF32",
        "--decomposableAttentions=*",
        "--skipInference",
    ]
    for end, name in enumerate(("min", "opt", "max")):
        listed = ",".join(f"{n}:{'x'.join(map(str, r[end]))}" for n, r in shapes.items())
        words.append(f"--{name}Shapes={listed}")
    if target.product == "trt-rtx":
        numbers = ",".join(c.replace(".", "") for c in target.capabilities)
        words.append(f"--computeCapabilities={numbers}")
    return shlex.join(words)
