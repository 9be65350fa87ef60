"""The bundle: the directory that the exporter writes and the runtime reads, and its contract.

bundle.json          everything below, and the sha256 of every file
<piece>.onnx         one graph per piece
<piece>.onnx.data    its weights
tokenizer.json ...   the text tokenizer's files
engines/             built engines (engines/ room), each with its own engine.json
"""

import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runtime.errors import MALFORMED, BundleError

SCHEMA = 1
MANIFEST = "bundle.json"
PIECES = (
    "mel",
    "tokenizer_encoder",
    "patch_encoder",
    "backbone",
    "patch_decoder",
    "tokenizer_decoder",
)
CHUNK = 1 << 22  # bytes read at a time while hashing


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


class Bundle:
    """An opened bundle. `open` refuses a folder that is not exactly what its manifest says.

    `verify` says whether what lies in it is hashed before it is used: files, and engines too.
    """

    def __init__(self, folder: Path, manifest: Manifest, verify: bool = True) -> None:
        self.folder, self.manifest, self.verify = folder, manifest, verify

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        verify: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> "Bundle":
        """Read and check a bundle.

        `verify` hashes every file (about a second per GB), and later the engines that a backend
        takes from it; sizes are checked in any case.
        `progress` is called with (bytes hashed, bytes in all). Raises BundleError.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise BundleError(
                f"{folder} is not a bundle: it has no {MANIFEST}. "
                "Make one with `mimo-edge export CHECKPOINT --audio-tokenizer DIR -o BUNDLE`."
            )
        try:
            manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error
        except MALFORMED as error:
            raise BundleError(
                f"{path} is damaged ({type(error).__name__}: {error}). Export the bundle again."
            ) from error
        bundle = cls(folder, manifest, verify)
        missing = [name for name in PIECES if name not in manifest.pieces]
        if missing:
            raise BundleError(f"{folder} lacks the pieces {', '.join(missing)}. Export it again.")
        bundle._check_sizes()
        if verify:
            bundle._check_hashes(progress)
        return bundle

    def piece(self, name: str) -> PieceSpec:
        return self.manifest.pieces[name]

    def path(self, name: str) -> Path:
        """The ONNX file of a piece."""
        return self.folder / self.manifest.pieces[name].file

    @property
    def model(self) -> ModelSpec:
        return self.manifest.model

    @cached_property
    def identity(self) -> str:
        """sha256 over the hashes of all files: two bundles with the same identity are the same."""
        digest = hashlib.sha256()
        for name in sorted(self.manifest.files):
            digest.update(f"{name} {self.manifest.files[name].sha256}\n".encode())
        return digest.hexdigest()

    def _check_sizes(self) -> None:
        for name, spec in self.manifest.files.items():
            path = self.folder / name
            if not path.is_file():
                raise BundleError(f"{path} is missing. Copy the whole bundle, or export it again.")
            size = path.stat().st_size
            if size != spec.bytes:
                raise BundleError(
                    f"{path} has {size} bytes, the manifest says {spec.bytes}: it is truncated or "
                    "altered. Copy the bundle again, or export it again."
                )

    def _check_hashes(self, progress: Callable[[int, int], None] | None) -> None:
        done, total = 0, sum(spec.bytes for spec in self.manifest.files.values())
        for name, spec in self.manifest.files.items():
            digest = hashlib.sha256()
            for chunk in _chunks(self.folder / name):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            if digest.hexdigest() != spec.sha256:
                raise BundleError(
                    f"{self.folder / name} was altered: its sha256 is not the one in {MANIFEST}. "
                    "Copy the bundle again, or export it again."
                )


def hash_file(path: Path) -> FileSpec:
    """sha256 and size of a file."""
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(path):
        digest.update(chunk)
        size += len(chunk)
    return FileSpec(digest.hexdigest(), size)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a failure leaves nothing behind."""
    # not made from the target's name, which may already be as long as a name can be
    temporary = path.with_name(f".mimo-edge-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
