"""bundle.json: the contract between the exporter, which writes bundles, and all that read them.

bundle.json          everything below, and the sha256 of every file
<piece>.onnx         one graph per piece
<piece>.onnx.data    its weights
tokenizer.json ...   the text tokenizer's files
engines/             built engines (package engines), each with its own engine.json
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mimo_edge.runtime.bundle.errors import BundleError

SCHEMA = 1
MANIFEST = "bundle.json"
PIECES = (
    "mel",
    "tokenizer_encoder",
    "patch_encoder",
    "backbone",
    "patch_decoder",
    "tokenizer_decoder",
    "mel_stream",
    "vocoder_stream",
)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: an axis is a name (symbolic) or a size."""

    name: str
    dtype: str
    axes: tuple[str | int, ...]


@dataclass(frozen=True)
class PieceSpec:
    """One graph: its file inside the bundle, its ports, and the precision it computes in."""

    file: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class FileSpec:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ModelSpec:
    """What the runtime needs to know of the model. `context` counts patches."""

    group_size: int
    n_q: int
    code_vocab: tuple[int, ...]
    empty_codes: tuple[int, ...]
    delays: tuple[int, ...]
    hidden_size: int
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int
    context: int
    sampling_rate: int
    n_fft: int
    hop_length: int
    n_mels: int
    mel_per_frame: int  # mel frames that become one code frame
    samples_per_frame: int  # audio samples that one code frame becomes
    max_audio_seconds: int


@dataclass(frozen=True)
class Manifest:
    """The content of bundle.json."""

    schema: int
    model: ModelSpec
    pieces: Mapping[str, PieceSpec]
    files: Mapping[str, FileSpec]
    tools: Mapping[str, str]
    source: str  # fingerprint of the checkpoints it was exported from

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Raises BundleError for another schema version, one of MALFORMED for anything else."""
        raw = json.loads(text)
        if not isinstance(raw, dict) or "schema" not in raw:
            raise ValueError("no schema version")
        if raw["schema"] != SCHEMA:
            raise BundleError(
                f"the bundle has schema version {raw['schema']}, this program reads {SCHEMA}. "
                "Export the checkpoint again with this version of mimo-edge."
            )
        files = {name: FileSpec(**spec) for name, spec in raw["files"].items()}
        pieces = {name: _piece(spec) for name, spec in raw["pieces"].items()}
        for name, piece in pieces.items():
            if piece.file not in files:
                raise ValueError(f"the file of piece {name}, {piece.file!r}, is not listed")
        return cls(raw["schema"], _model(raw["model"]), pieces, files, raw["tools"], raw["source"])


def _model(raw: Mapping[str, Any]) -> ModelSpec:
    """Sizes that are no whole numbers would fail far from here."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    for field in dataclasses.fields(ModelSpec):
        value = values.get(field.name)
        numbers = (value,) if field.type is int else value
        if not isinstance(numbers, tuple) or any(type(n) is not int for n in numbers):
            raise ValueError(f"model.{field.name} is {raw.get(field.name)!r}")
    return ModelSpec(**values)


def _piece(raw: Mapping[str, Any]) -> PieceSpec:
    def ports(items: list[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(p["name"], p["dtype"], tuple(p["axes"])) for p in items)

    return PieceSpec(raw["file"], raw["precision"], ports(raw["inputs"]), ports(raw["outputs"]))
