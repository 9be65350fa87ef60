"""Whether a manifest can be true: its names, its sizes, and its ports against the graphs' own.

A bundle may come from anywhere. What is wrong with it must be found before a size in it becomes
memory, and before a name in it opens a file.
"""

import os
import re
from collections.abc import Container, Iterable
from pathlib import Path

from mimo_edge.runtime.bundle.errors import MALFORMED, BundleError
from mimo_edge.runtime.bundle.graph_file import read_graph
from mimo_edge.runtime.bundle.manifest import Manifest, ModelSpec, PieceSpec, TensorSpec
from mimo_edge.runtime.bundle.shared_ports import disagreements

# (least, most) of each size. No model comes near the upper ends; what is beyond them is an attack,
# or a damaged file, and would be memory
_LARGEST = 1 << 20
_RANGES: dict[str, tuple[int, int]] = {
    "group_size": (1, 1024),
    "n_q": (1, 1024),
    "code_vocab": (1, _LARGEST),
    "empty_codes": (0, _LARGEST),
    "delays": (0, 1024),
    "hidden_size": (1, _LARGEST),
    "vocab_size": (1, 1 << 24),
    "layers": (1, 1024),
    "kv_heads": (1, 1 << 12),
    "head_dim": (1, 1 << 14),
    "context": (2, 1 << 24),
    "sampling_rate": (1000, 768_000),
    "n_fft": (2, _LARGEST),
    "hop_length": (1, _LARGEST),
    "n_mels": (1, 1 << 14),
    "mel_per_frame": (1, 1 << 12),
    "samples_per_frame": (1, _LARGEST),
    "max_audio_seconds": (1, 1 << 20),
}


def check_manifest(manifest: Manifest) -> None:
    """Raises ValueError for names and sizes that no bundle has, or that contradict its ports."""
    if not isinstance(manifest.tools, dict) or not isinstance(manifest.source, str):
        raise ValueError("tools is no object, or source is no text")
    if not isinstance(manifest.calibration, str | None):
        raise ValueError(f"calibration is {manifest.calibration!r}")
    for name, spec in manifest.files.items():
        if type(spec.bytes) is not int or spec.bytes < 0:
            raise ValueError(f"the size of {name} is {spec.bytes!r}")
        if not isinstance(spec.sha256, str) or not re.fullmatch("[0-9a-f]{64}", spec.sha256):
            raise ValueError(f"the sha256 of {name} is {spec.sha256!r}")
    _check_model(manifest.model)
    if problems := disagreements(manifest):
        raise ValueError("; ".join(problems[:3]))


def check_graphs(folder: Path, pieces: Iterable[PieceSpec], files: Container[str]) -> None:
    """Raises BundleError for a graph that has other ports than the manifest says, or weights in a
    file that is none of `files`, or that a backend would not read where it is."""
    for piece in pieces:
        path = folder / piece.file
        try:
            graph = read_graph(path)
        except MALFORMED as error:
            raise BundleError(f"{path} is no graph: {error}. Export the bundle again.") from error
        for side, own, told in (
            ("inputs", graph.inputs, piece.inputs),
            ("outputs", graph.outputs, piece.outputs),
        ):
            if _comparable(own) != _comparable(told):
                raise BundleError(
                    f"{path} has other {side} than the bundle's manifest says "
                    f"({_difference(own, told)}). Export the bundle again."
                )
        for name in sorted(graph.locations):
            if name not in files:
                raise BundleError(
                    f"{path} has weights in {name!r}, which is not in the bundle's manifest. "
                    "Export the bundle again."
                )
            _check_beside(path, folder / name)


def _check_beside(graph: Path, weights: Path) -> None:
    """ONNX Runtime reads weights only from the folder that the graph is really in."""
    real = Path(os.path.realpath(weights))
    beside = Path(os.path.realpath(graph)).parent, Path(os.path.realpath(graph.parent))
    if not any(real.is_relative_to(folder) for folder in beside):
        raise BundleError(
            f"{weights} is a link to {real}, which is not beside its graph: "
            "backends refuse to read it there. Copy the file into the bundle, or link the whole "
            "folder in place of its files."
        )


def _check_model(model: ModelSpec) -> None:
    for name, (least, most) in _RANGES.items():
        value = getattr(model, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not least <= number <= most:
                raise ValueError(f"model.{name} is {value!r}, outside {least}..{most}")
    for name in ("code_vocab", "empty_codes", "delays"):
        count = len(getattr(model, name))
        if count != model.n_q:
            raise ValueError(f"model.{name} is of {count} codebooks, n_q says {model.n_q}")
    for book, (empty, codes) in enumerate(zip(model.empty_codes, model.code_vocab, strict=True)):
        if empty >= codes:
            raise ValueError(f"the empty code {empty} of codebook {book} is beyond its {codes}")
    if model.hop_length > model.n_fft:
        raise ValueError(f"model.hop_length {model.hop_length} is above n_fft {model.n_fft}")


def _comparable(ports: tuple[TensorSpec, ...]) -> list[tuple[str, str, tuple[str | int, ...]]]:
    return [(port.name, port.dtype, port.axes) for port in ports]


def _difference(own: tuple[TensorSpec, ...], told: tuple[TensorSpec, ...]) -> str:
    if len(own) != len(told):
        return f"{len(own)}, not {len(told)}"
    a, b = next((a, b) for a, b in zip(own, told, strict=True) if a != b)
    return f"{a.name} {a.dtype} {list(a.axes)}, not {b.name} {b.dtype} {list(b.axes)}"
