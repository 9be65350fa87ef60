"""bundle.json: the contract between the exporter, which writes bundles, and all that read them.

bundle.json          everything below, and the sha256 of every file
<piece>.onnx         one graph per piece
<piece>.onnx.data    its weights, and those of pieces that have the same (`data_files`)
tokenizer.json ...   the text tokenizer's files
engines/             built engines (package engines), each with its own engine.json

`mimo-edge build --target ort-cpu` makes another bundle of one, whose graphs only ONNX Runtime runs
and only on such a processor; `built` says so.

docs/bundle.md says how the graphs are driven.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mimo_edge.runtime.bundle.dtypes import DTYPES, PRECISIONS
from mimo_edge.runtime.bundle.errors import BundleError
from mimo_edge.runtime.bundle.family import member
from mimo_edge.runtime.bundle.names import plain_name

SCHEMA = 2
MANIFEST = "bundle.json"
# piece -> the components whose weights are in it; a recipe speaks of components
COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "mel": ("mel",),
    "tokenizer_encoder": ("tokenizer_encoder", "codebooks"),
    "patch_encoder": ("text_embedding", "speech_embeddings", "patch_encoder"),
    "backbone": ("backbone", "lm_head"),
    "patch_decoder": ("speech_embeddings", "patch_decoder", "speech_heads"),
    "tokenizer_decoder": ("codebooks", "tokenizer_decoder", "vocoder"),
    "mel_stream": ("codebooks", "tokenizer_decoder"),
    "vocoder_stream": ("vocoder",),
}
PIECES = tuple(COMPONENTS)
# where the packed form of a build's weights is: in the file, beside the unpacked ones, or in memory
# only, where ONNX Runtime makes it each time that it loads
PACKED = IN_FILE, IN_MEMORY = ("file", "memory")
AUDIO_SECONDS = 60  # longer audio is encoded, and longer speech decoded, in parts


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: an axis is a name (symbolic) or a size."""

    name: str
    dtype: str
    axes: tuple[str | int, ...]


@dataclass(frozen=True)
class WeightScheme:
    """How the weights of a component are stored: a precision, or a quantised form in blocks."""

    scheme: str
    block: int | None = None  # weights that share a scale; None of a quantised form: a channel
    method: str | None = None  # how the scales were found
    also: tuple[str, ...] = ()  # other forms that some of the component's weights have
    activations: str | None = None  # what its products read is rounded to, by calibrated scales


@dataclass(frozen=True)
class PieceSpec:
    """One graph: its two files inside the bundle, its numbers, and its ports."""

    file: str
    data: str  # its weights; other pieces may have theirs there, too
    compute: str  # what it computes in: of PRECISIONS
    weights: Mapping[str, WeightScheme]  # component -> how its weights are stored
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dynamic: bool = False  # a backend may round what products read to int8 as it runs

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> "PieceSpec":
        """From JSON. Raises one of MALFORMED."""

        def ports(items: list[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
            found = tuple(TensorSpec(p["name"], p["dtype"], tuple(p["axes"])) for p in items)
            for port in found:
                if port.dtype not in DTYPES:
                    raise ValueError(f"port {port.name} has the dtype {port.dtype!r}")
            return found

        if raw["compute"] not in PRECISIONS:
            raise ValueError(f"compute is {raw['compute']!r}")
        if not isinstance(raw["dynamic"], bool):
            raise ValueError(f"dynamic is {raw['dynamic']!r}")
        weights = {
            name: WeightScheme(**{**scheme, "also": tuple(scheme["also"])})
            for name, scheme in raw["weights"].items()
        }
        sides = ports(raw["inputs"]), ports(raw["outputs"])
        return cls(raw["file"], raw["data"], raw["compute"], weights, *sides, raw["dynamic"])


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

    @property
    def sub_steps(self) -> int:
        """Runs of the patch decoder that make one patch."""
        return self.group_size + max(self.delays)


@dataclass(frozen=True)
class Built:
    """What the graphs of a bundle were made for, beside any other: see docs/performance.md."""

    target: str  # "ort-cpu"
    onnxruntime: str  # version
    processor: str  # as `processor` says it
    source: str  # identity of the bundle that it was made from
    unread: Mapping[str, int]  # piece -> bytes of its weights that no step reads
    packed: str = IN_FILE  # of PACKED
    calibration: str = ""  # sha256 of the statistics by which keys and values are int8; "" floats

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> "Built":
        """From JSON. Raises one of MALFORMED."""
        # earlier builds do not say it
        values = {"packed": IN_FILE, "calibration": ""} | dict(raw)
        for field in dataclasses.fields(cls):
            kind = str if field.type is str else dict
            if type(values[field.name]) is not kind:
                raise ValueError(f"built.{field.name} is {values[field.name]!r:.80}")
        if len(values) != len(dataclasses.fields(cls)) or any(
            type(count) is not int or count < 0 for count in values["unread"].values()
        ):
            raise ValueError(f"built is {raw!r:.120}")
        if values["packed"] not in PACKED:
            raise ValueError(f"built.packed is {values['packed']!r:.80}")
        return cls(**values)


@dataclass(frozen=True)
class Manifest:
    """The content of bundle.json."""

    schema: int
    architecture: str  # as the checkpoint's config.json calls it
    activation_dtype: str  # of the states that go from piece to piece
    cache_dtype: str  # of keys and values
    model: ModelSpec
    pieces: Mapping[str, PieceSpec]
    files: Mapping[str, FileSpec]
    tools: Mapping[str, str]
    source: str  # fingerprint of the checkpoints it was exported from
    chat: Mapping[str, Any]  # the prompt protocol, for programs that are not this one
    recipe: str  # the name of that by which it was made
    calibration: str | None = None  # sha256 of the statistics that were used
    built: Built | None = None  # of a bundle that only one backend on one kind of machine runs

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
        for name in files:
            if not plain_name(name):
                raise ValueError(f"{name!r} is not the name of a file in the bundle")
        pieces = {name: PieceSpec.from_raw(spec) for name, spec in raw["pieces"].items()}
        for name, piece in pieces.items():
            for file in (piece.file, piece.data):
                if file not in files:
                    raise ValueError(f"the file of piece {name}, {file!r}, is not listed")
        member(raw["architecture"])
        if not isinstance(raw["chat"], dict):
            raise ValueError(f"chat is {raw['chat']!r}")
        return cls(
            schema=raw["schema"],
            architecture=raw["architecture"],
            activation_dtype=raw["activation_dtype"],
            cache_dtype=raw["cache_dtype"],
            model=_model(raw["model"]),
            pieces=pieces,
            files=files,
            tools=raw["tools"],
            source=raw["source"],
            chat=raw["chat"],
            recipe=raw["recipe"],
            calibration=raw.get("calibration"),
            built=None if raw.get("built") is None else Built.from_raw(raw["built"]),
        )


def _model(raw: Mapping[str, Any]) -> ModelSpec:
    """Sizes that are no whole numbers would fail far from here."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    for field in dataclasses.fields(ModelSpec):
        value = values.get(field.name)
        numbers = (value,) if field.type is int else value
        if not isinstance(numbers, tuple) or any(type(n) is not int for n in numbers):
            raise ValueError(f"model.{field.name} is {raw.get(field.name)!r}")
    return ModelSpec(**values)
