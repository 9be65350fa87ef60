"""From two checkpoints to a bundle: trace, stream, check, and only then give it its name.

Everything is written into `<bundle>.partial`. It is removed when the export fails, unless the
caller asked to resume: then finished pieces stay and the next export takes them over.
"""

import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from export import (
    backbone,
    mel,
    patch_decoder,
    patch_encoder,
    tokenizer_decoder,
    tokenizer_encoder,
)
from export.graph import lay_out_weights, simplify
from export.piece import Piece, Port, cast
from export.trace import trace
from export.weights import WeightWriter, attach, plan_regions
from mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_ref.weights import TensorFiles, check_names, read_config, upstream_tensors
from runtime.bundle import (
    MANIFEST,
    PIECES,
    SCHEMA,
    FileSpec,
    Manifest,
    ModelSpec,
    PieceSpec,
    TensorSpec,
    hash_file,
    write_text,
)
from runtime.errors import MALFORMED, InputError, ResourceError
from runtime.text_tokenizer import TextTokenizer, tokenizer_files

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TRACE_BYTES = 1 << 30  # memory that torch and a traced graph take, whatever the weights
TOOLS = ("mimo-edge", "torch", "onnx", "onnxscript")

# (what is being done, steps done, steps in all); steps are bytes of weights
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sources:
    """The checkpoints of one export, checked against their configs."""

    language_model: LanguageModelConfig
    audio_tokenizer: AudioTokenizerConfig
    text_tokenizer: TextTokenizer
    text_files: list[Path]
    tensors: list[TensorFiles]
    fingerprint: str

    @classmethod
    def open(cls, checkpoint: Path, audio_tokenizer: Path, text_tokenizer: Path) -> "Sources":
        """Raises CheckpointError, ConfigError or BundleError for what is not as it must be."""
        lm = read_config(checkpoint, LanguageModelConfig.from_dict)
        audio = read_config(audio_tokenizer, AudioTokenizerConfig.from_dict)
        text = TextTokenizer.from_folder(text_tokenizer)
        tensors = [TensorFiles(checkpoint), TensorFiles(audio_tokenizer)]
        with torch.device("meta"):
            models = LanguageModel(lm, text.special.empty), AudioTokenizer(audio)
        check_names(tensors[0], tensor_shapes(models[0]))
        check_names(tensors[1], tensor_shapes(models[1]))
        digest = hashlib.sha256()
        for folder in (checkpoint, audio_tokenizer):
            digest.update((folder / "config.json").read_bytes())
            for path in sorted(folder.glob("*.safetensors")):
                digest.update(f"{path.name} {path.stat().st_size}".encode())
                digest.update(_header(path))
        return cls(lm, audio, text, tokenizer_files(text_tokenizer), tensors, digest.hexdigest())

    def piece_builders(self, dtype: torch.dtype) -> dict[str, Callable[[], Piece]]:
        """How to build each piece; to be called where tensors are fake."""

        def lm() -> LanguageModel:
            empty = self.text_tokenizer.special.empty
            return cast(LanguageModel(self.language_model, empty), dtype)

        def audio() -> AudioTokenizer:
            tokenizer = AudioTokenizer(self.audio_tokenizer)
            for piece in (tokenizer.encoder, tokenizer.decoder):
                cast(piece, dtype)  # the quantiser and the window stay exact in every precision
            return tokenizer

        return {
            "mel": lambda: mel.piece(self.audio_tokenizer),
            "tokenizer_encoder": lambda: tokenizer_encoder.piece(audio()),
            "patch_encoder": lambda: patch_encoder.piece(lm(), dtype),
            "backbone": lambda: backbone.piece(lm(), dtype),
            "patch_decoder": lambda: patch_decoder.piece(lm(), dtype),
            "tokenizer_decoder": lambda: tokenizer_decoder.piece(audio()),
        }

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of weights that the bundle will hold, give or take the small float32 islands."""
        with torch.device("meta"):
            models = LanguageModel(self.language_model, 0), AudioTokenizer(self.audio_tokenizer)
        tensors = [t for m in models for p in m.pieces() for t in p.state_dict().values()]
        return sum(t.numel() for t in tensors) * dtype.itemsize

    def memory_bytes(self, dtype: torch.dtype) -> int:
        """Memory that the export takes at its peak: the tracer, and the largest tensor."""
        with torch.device("meta"):
            models = LanguageModel(self.language_model, 0), AudioTokenizer(self.audio_tokenizer)
        largest = max(t.numel() for m in models for t in m.parameters())
        return TRACE_BYTES + largest * dtype.itemsize

    def model_spec(self) -> ModelSpec:
        lm, audio = self.language_model, self.audio_tokenizer
        return ModelSpec(
            group_size=lm.group_size,
            n_q=lm.audio_channels,
            code_vocab=lm.speech_vocab_size,
            empty_codes=lm.speech_zeroemb_idx,
            delays=lm.delay_pattern,
            hidden_size=lm.hidden_size,
            vocab_size=lm.vocab_size,
            layers=lm.num_hidden_layers,
            kv_heads=lm.num_key_value_heads,
            head_dim=lm.head_dim,
            context=lm.max_position_embeddings,
            sampling_rate=audio.sampling_rate,
            n_fft=audio.nfft,
            hop_length=audio.hop_length,
            n_mels=audio.n_mels,
            mel_per_frame=audio.stride_size * audio.avg_pooler,
            samples_per_frame=audio.samples_per_frame,
            max_audio_seconds=audio.max_audio_seconds,
        )


def tensor_shapes(model: LanguageModel | AudioTokenizer) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape that the model wants."""
    places = upstream_tensors(model.pieces())
    return {n: tuple(p[0][0].state_dict()[p[0][1]].shape) for n, p in places.items()}


def export_bundle(
    sources: Sources,
    output: Path,
    dtype_name: str,
    *,
    resume: bool = False,
    force: bool = False,
    report: Report = lambda *_: None,
) -> None:
    """Write a bundle. Raises InputError, ResourceError; leaves nothing behind on failure."""
    dtype = DTYPES[dtype_name]
    _check_output(sources, output, force)
    output = Path(os.path.realpath(output))  # a link stays a link: what it points to is replaced
    total = sources.weight_bytes(dtype)
    with _partial_folder(output, total, resume) as partial:
        files: dict[str, FileSpec] = {}
        pieces: dict[str, PieceSpec] = {}
        done = 0
        key = _marker_key(sources, dtype_name)
        for name, build in sources.piece_builders(dtype).items():
            finished = _read_marker(partial, name, key) if resume else None
            if finished is None:

                def wrote(count: int, name: str = name) -> None:
                    nonlocal done
                    done += count
                    report(f"writing {name}", done, max(total, done))

                report(f"tracing {name}", done, max(total, done))
                finished = _export_piece(sources, partial, name, build, dtype_name, wrote)
                _write_marker(partial, name, key, finished)
            else:
                done += sum(spec.bytes for spec in finished[1].values())
                report(f"kept {name}", done, max(total, done))
            pieces[name] = finished[0]
            files.update(finished[1])
        for path in sources.text_files:
            shutil.copyfile(path, partial / path.name)
            files[path.name] = hash_file(partial / path.name)
        manifest = Manifest(
            SCHEMA, sources.model_spec(), pieces, files, tool_versions(), sources.fingerprint
        )
        for name in PIECES:
            _marker(partial, name).unlink(missing_ok=True)
        write_text(partial / MANIFEST, manifest.to_json())
        if output.exists():
            shutil.rmtree(output)
        os.replace(partial, output)
    report("done", total, total)


def tool_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in TOOLS}


def _check_output(sources: Sources, output: Path, force: bool) -> None:
    """Refuse, before the long work, an output that must not or cannot be replaced."""
    read = [files.folder for files in sources.tensors] + [p.parent for p in sources.text_files]
    place = output.resolve()
    if any(place in (folder, *folder.parents) for folder in map(Path.resolve, read)):
        raise InputError(f"{output} holds the checkpoint that is exported. Choose another name.")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file, not a folder. Choose another name, or remove it.")
    if output.exists() and not force and any(output.iterdir()):
        raise InputError(f"{output} exists. Choose another name, or pass --force to replace it.")


@contextmanager
def _partial_folder(output: Path, total: int, resume: bool) -> Iterator[Path]:
    partial = output.with_name(output.name + ".partial")
    new = [folder for folder in partial.parents if not folder.exists()]
    if partial.exists() and not resume:
        shutil.rmtree(partial)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _check_disk(partial, total)
        yield partial
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ResourceError(
                f"the disk of {output} is full. Free {total / 1e9:.1f} GB, or write elsewhere."
            ) from error
        raise
    finally:
        if partial.exists() and not resume:
            shutil.rmtree(partial, ignore_errors=True)
        for folder in new:
            with suppress(OSError):  # it is not empty where the export went well
                folder.rmdir()


def _check_disk(partial: Path, total: int) -> None:
    held = sum(path.stat().st_size for path in partial.iterdir())
    free = shutil.disk_usage(partial).free + held
    if free < total:
        raise ResourceError(
            f"{partial.parent} has {free / 1e9:.1f} GB free, the bundle needs "
            f"{total / 1e9:.1f} GB. Free some, write elsewhere, or choose a smaller --dtype."
        )


def _export_piece(
    sources: Sources,
    folder: Path,
    name: str,
    build: Callable[[], Piece],
    dtype_name: str,
    wrote: Callable[[int], None],
) -> tuple[PieceSpec, dict[str, FileSpec]]:
    piece, model = trace(build)
    simplify(model)
    regions = plan_regions(model, lay_out_weights(model))
    data_name, graph_name = f"{name}.onnx.data", f"{name}.onnx"
    writer = WeightWriter(sources.tensors, piece)
    files = {data_name: writer.write(regions, folder / data_name, wrote)}
    attach(model, regions, data_name)
    proto = ir.to_proto(model)
    path = folder / graph_name
    path.write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    files[graph_name] = hash_file(path)
    precision = "fp32" if name == "mel" else dtype_name
    spec = PieceSpec(graph_name, precision, _ports(piece.inputs), _ports(piece.outputs))
    return spec, files


def _ports(ports: tuple[Port, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(p.name, str(p.dtype).removeprefix("torch."), p.axes) for p in ports)


def _marker(folder: Path, name: str) -> Path:
    return folder / f"{name}.finished.json"


def _marker_key(sources: Sources, dtype_name: str) -> str:
    """Everything that a finished piece depends on.

    Weights count by place, size and time of change: to hash them takes as long as to export them.
    """
    weights = {path.resolve() for files in sources.tensors for path in files.path_of.values()}
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(weights)]
    empty = sources.text_tokenizer.special.empty
    return json.dumps([sources.fingerprint, dtype_name, tool_versions(), empty, stats])


def _write_marker(
    folder: Path, name: str, key: str, finished: tuple[PieceSpec, dict[str, FileSpec]]
) -> None:
    spec, files = finished
    raw = {"key": key, "piece": dataclasses.asdict(spec)}
    raw["files"] = {n: dataclasses.asdict(f) for n, f in files.items()}
    write_text(_marker(folder, name), json.dumps(raw))


def _read_marker(folder: Path, name: str, key: str) -> tuple[PieceSpec, dict[str, FileSpec]] | None:
    """A piece that an earlier export finished from the same sources, or None."""
    try:
        raw = json.loads(_marker(folder, name).read_text())
        if raw["key"] != key:  # before the rest: another version may write it otherwise
            return None
    except (OSError, *MALFORMED):
        return None
    files = {n: FileSpec(**f) for n, f in raw["files"].items()}
    if not all((folder / n).is_file() and hash_file(folder / n) == f for n, f in files.items()):
        return None
    piece = raw["piece"]
    ports = {
        side: tuple(TensorSpec(p["name"], p["dtype"], tuple(p["axes"])) for p in piece[side])
        for side in ("inputs", "outputs")
    }
    return PieceSpec(piece["file"], piece["precision"], ports["inputs"], ports["outputs"]), files


def _header(path: Path) -> bytes:
    """The header of a safetensors file: names, shapes and places of its tensors."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))
