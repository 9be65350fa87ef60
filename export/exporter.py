"""From two checkpoints to a bundle: trace, stream, check, and only then give it its name.

Everything is written into `<bundle>.partial` (`runtime/bundle/unfinished.py`). It is removed when
the export fails, unless the caller asked to resume: then finished pieces stay and the next export
takes them over.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import torch
from mimo_edge.engines.calibration import Calibration
from mimo_edge.engines.quantized_graph import quantize_graph
from mimo_edge.engines.quantized_piece import Plan, is_dynamic, quantized, recorded, scaled
from mimo_edge.engines.recipe import Recipe, check_calibration, check_export, load
from mimo_edge.engines.weigh import as_parts, weigh
from mimo_edge.engines.weight_file import Stored, point_to, write_weights
from mimo_edge.export import (
    backbone,
    mel,
    mel_stream,
    patch_decoder,
    patch_encoder,
    tokenizer_decoder,
    tokenizer_encoder,
    vocoder_stream,
)
from mimo_edge.export.graph import count_axes_from_the_front, lay_out_weights, simplify
from mimo_edge.export.piece import Piece, Port, cast
from mimo_edge.export.shapes import graph_tensors
from mimo_edge.export.trace import trace
from mimo_edge.export.weights import (
    Region,
    WeightReader,
    attach,
    check_dtypes,
    plan_regions,
)
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.tensor_files import TensorFiles
from mimo_edge.mimo_ref.weights import check_names, read_config, upstream_tensors
from mimo_edge.runtime.bundle.dtypes import PRECISIONS
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.family import SPEECH_PIECES, Member, member
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.folders import check_output
from mimo_edge.runtime.bundle.manifest import (
    COMPONENTS,
    MANIFEST,
    SCHEMA,
    FileSpec,
    Manifest,
    ModelSpec,
    PieceSpec,
    TensorSpec,
    WeightScheme,
)
from mimo_edge.runtime.bundle.unfinished import (
    finish,
    own_place,
    partial_folder,
    read_marker,
    write_marker,
)
from mimo_edge.runtime.chat.protocol import protocol
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer, tokenizer_files

DTYPES: dict[str, torch.dtype] = {n: getattr(torch, d.name) for n, d in PRECISIONS.items()}
SCALE_DTYPES = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
}
EXACT = ("mel", "codebooks")  # components that stay in float32 in every bundle
TRACE_BYTES = 1 << 30  # memory that torch and a traced graph take, whatever the weights
TOOLS = ("mimo-edge", "torch", "onnx", "onnxscript", "onnx-ir")
# what makes a piece, beside the tools
CODE = (
    "export/*.py",
    "mimo_ref/*.py",
    "engines/quantized_*.py",
    "engines/scaling.py",
    "engines/schemes.py",
    "runtime/bundle/stream_sizes.py",
)

# (what is being done, steps done, steps in all); steps are bytes of weights
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sources:
    """The checkpoints of one export, checked against their configs and against each other."""

    language_model: LanguageModelConfig
    audio_tokenizer: AudioTokenizerConfig
    text_tokenizer: TextTokenizer
    text_files: list[Path]
    tensors: list[TensorFiles]

    @classmethod
    def open(cls, checkpoint: Path, audio_tokenizer: Path, text_tokenizer: Path) -> "Sources":
        """Raises CheckpointError, ConfigError or BundleError for what is not as it must be, and
        InputError for folders that do not belong together."""
        lm = read_config(checkpoint, LanguageModelConfig.from_dict)
        audio = read_config(audio_tokenizer, AudioTokenizerConfig.from_dict)
        text = TextTokenizer.from_folder(text_tokenizer)
        _check_text_fits(lm, checkpoint, text, text_tokenizer)
        _check_codes_fit(lm, checkpoint, audio, audio_tokenizer)
        tensors = [TensorFiles(checkpoint), TensorFiles(audio_tokenizer)]
        with torch.device("meta"):
            models = LanguageModel(lm, text.special.empty), AudioTokenizer(audio)
        shapes_of = tensor_shapes(models[0]), tensor_shapes(models[1])
        for files, shapes in zip(tensors, shapes_of, strict=True):
            check_names(files, shapes)
            check_dtypes(files, shapes)
        return cls(lm, audio, text, tokenizer_files(text_tokenizer), tensors)

    def files(self) -> list[Path]:
        """Every file that the bundle is made from."""
        weights = [sorted(set(files.path_of.values())) for files in self.tensors]
        configs = [files.folder / "config.json" for files in self.tensors]
        return [*configs, *(path for paths in weights for path in paths), *self.text_files]

    def fingerprint(self, on_progress: Callable[[int, int], None] = lambda *_: None) -> str:
        """sha256 over the names and contents of all files that the bundle is made from.

        It reads them all, weights included; `on_progress` is told how many bytes of how many.
        """
        digest, done = hashlib.sha256(), 0
        paths = self.files()
        total = sum(path.stat().st_size for path in paths)
        for path in paths:
            on_progress(done, total)
            spec = hash_file(path)
            digest.update(f"{path.name} {spec.sha256}\n".encode())
            done += spec.bytes
        return digest.hexdigest()

    @property
    def member(self) -> Member:
        """Which model of the family the checkpoint is of."""
        return member(self.language_model.architecture)

    def exports_speech(self, asked: bool) -> bool:
        """Whether what makes speech is exported: always, but of a model that only listens."""
        return asked or not self.member.listens_only

    def piece_builders(
        self, dtype: torch.dtype, speech: bool = True
    ) -> dict[str, Callable[[], Piece]]:
        """How to build each piece, those that make `speech` too; to be called where tensors are
        fake."""

        def lm() -> LanguageModel:
            empty = self.text_tokenizer.special.empty
            return cast(LanguageModel(self.language_model, empty), dtype)

        def audio() -> AudioTokenizer:
            tokenizer = AudioTokenizer(self.audio_tokenizer)
            for piece in (tokenizer.encoder, tokenizer.decoder):
                cast(piece, dtype)  # the quantiser and the window stay exact in every precision
            return tokenizer

        builders = {
            "mel": lambda: mel.piece(self.audio_tokenizer),
            "tokenizer_encoder": lambda: tokenizer_encoder.piece(audio()),
            "patch_encoder": lambda: patch_encoder.piece(lm(), dtype),
            "backbone": lambda: backbone.piece(lm(), dtype),
            "patch_decoder": lambda: patch_decoder.piece(lm(), dtype),
            "tokenizer_decoder": lambda: tokenizer_decoder.piece(audio()),
            "mel_stream": lambda: mel_stream.piece(audio(), dtype),
            "vocoder_stream": lambda: vocoder_stream.piece(audio(), dtype),
        }
        return {n: build for n, build in builders.items() if speech or n not in SPEECH_PIECES}

    def weight_bytes(self, dtype: torch.dtype, speech: bool = True) -> int:
        """Bytes of weights that the bundle will hold, give or take the small float32 islands."""
        with torch.device("meta"):
            lm, audio = LanguageModel(self.language_model, 0), AudioTokenizer(self.audio_tokenizer)
        pieces = [*lm.pieces(), *audio.pieces()]
        if not speech:
            pieces = [p for p in pieces if p not in (lm.patch_decoder, audio.decoder)]
        tensors = [tensor for piece in pieces for tensor in piece.state_dict().values()]
        return sum(t.numel() for t in tensors) * dtype.itemsize

    def stored_bytes(self, dtype_name: str, recipe: Recipe, speech: bool = True) -> int:
        """Bytes of weights as a recipe stores them. Raises RecipeError if it does not fit."""
        parts = as_parts(graph_tensors(self.language_model, self.audio_tokenizer, speech))
        return sum(share.bytes for share in weigh(recipe, parts, dtype_name))

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
    recipe: Recipe | None = None,
    *,
    calibration: Calibration | None = None,
    resume: bool = False,
    force: bool = False,
    speech: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> None:
    """Write a bundle, computed in `dtype_name` and stored as a recipe says, if one is given.

    A recipe may need a `calibration` of the same checkpoints.
    Raises InputError, ResourceError; leaves nothing behind on failure, or with `resume` what the
    next export can go on with. `force` replaces a bundle that is there, `speech` exports what makes
    speech even of a model that was trained to listen only.
    Nobody else can write the bundle as long as it takes.
    """
    recipe = recipe or load(dtype_name)
    check_export(recipe, dtype_name)
    check_calibration(recipe, calibration)
    dtype = DTYPES[dtype_name]
    speech = sources.exports_speech(speech)
    read = [p.parent for path in sources.files() for p in (path, path.resolve())]
    output = check_output(output, read, force)
    total = sources.weight_bytes(dtype, speech)
    held = sources.stored_bytes(dtype_name, recipe, speech)
    with own_place(output), partial_folder(output, held, resume) as partial:
        check_output(output, read, force)  # another export may have ended since
        files: dict[str, FileSpec] = {}
        pieces: dict[str, PieceSpec] = {}
        done = 0
        source = sources.fingerprint(lambda *bytes: on_progress("hashing the checkpoints", *bytes))
        if calibration is not None:
            calibration.check_source(source, sources.tensors[0].folder)
        made_by = [dataclasses.asdict(recipe), calibration and calibration.digest]
        key = json.dumps([source, dtype_name, made_by, tool_versions(), _code_digest()])
        for name, build in sources.piece_builders(dtype, speech).items():
            finished = read_marker(partial, name, key) if resume else None
            if finished is None:

                def on_write(count: int, name: str = name) -> None:
                    nonlocal done
                    done += count
                    on_progress(f"writing {name}", done, max(total, done))

                on_progress(f"tracing {name}", done, max(total, done))
                finished = _export_piece(
                    sources, partial, name, build, dtype_name, recipe, calibration, on_write
                )
                write_marker(partial, name, key, finished)
            else:
                done += sum(spec.bytes for spec in finished[1].values())
                on_progress(f"kept {name}", done, max(total, done))
            pieces[name] = finished[0]
            files.update(finished[1])
        for path in sources.text_files:
            shutil.copyfile(path, partial / path.name)
            files[path.name] = hash_file(partial / path.name)
        states = PRECISIONS[dtype_name].name
        manifest = Manifest(
            schema=SCHEMA,
            architecture=sources.language_model.architecture,
            activation_dtype=states,
            cache_dtype=states,
            model=sources.model_spec(),
            pieces=pieces,
            files=files,
            tools=tool_versions(),
            source=source,
            chat=protocol(sources.text_tokenizer, sources.member),
            recipe=recipe.name,
            calibration=None if calibration is None else calibration.digest,
        )
        write_text(partial / MANIFEST, manifest.to_json())
        finish(partial, output)
    on_progress("done", total, total)


def tool_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in TOOLS}


def _code_digest() -> str:
    """Over the code that makes a piece."""
    digest, root = hashlib.sha256(), Path(__file__).parent.parent
    for path in sorted(path for pattern in CODE for path in root.glob(pattern)):
        digest.update(f"{path.name} {hash_file(path).sha256}\n".encode())
    return digest.hexdigest()


def _check_text_fits(
    lm: LanguageModelConfig, checkpoint: Path, text: TextTokenizer, folder: Path
) -> None:
    ids = dataclasses.asdict(text.special)
    # special ids may lie beyond a gap, so the number of ids does not say which is the largest
    ids["the largest"] = max(text._tokenizer.get_vocab(with_added_tokens=True).values())
    beyond = {name: number for name, number in ids.items() if number >= lm.vocab_size}
    if beyond:
        name, number = next(iter(beyond.items()))
        raise InputError(
            f"{folder} is not the text tokenizer of {checkpoint}: its id {number} ({name}) is "
            f"beyond vocab_size {lm.vocab_size}. Take both from one release."
        )


def _check_codes_fit(
    lm: LanguageModelConfig, checkpoint: Path, audio: AudioTokenizerConfig, folder: Path
) -> None:
    remedy = "Take both from one release."
    if lm.audio_channels > audio.num_quantizers:
        raise InputError(
            f"{folder} has {audio.num_quantizers} codebooks (num_quantizers), {checkpoint} speaks "
            f"in {lm.audio_channels} (audio_channels). {remedy}"
        )
    sizes = audio.codebook_size[: lm.audio_channels]
    if sizes != lm.speech_zeroemb_idx:  # the empty code is the one after a codebook's last
        raise InputError(
            f"{folder} has codebooks of {_joined(sizes)} codes (codebook_size), the empty codes "
            f"of {checkpoint} are {_joined(lm.speech_zeroemb_idx)} (speech_zeroemb_idx): they must "
            f"be equal. {remedy}"
        )


def _joined(numbers: Iterable[int]) -> str:
    return "-".join(map(str, numbers))


def _export_piece(
    sources: Sources,
    folder: Path,
    name: str,
    build: Callable[[], Piece],
    dtype_name: str,
    recipe: Recipe,
    calibration: Calibration | None,
    on_write: Callable[[int], None],
) -> tuple[PieceSpec, dict[str, FileSpec]]:
    piece, model = trace(build)
    simplify(model)
    count_axes_from_the_front(model)
    regions = plan_regions(model, lay_out_weights(model))
    data_name, graph_name = f"{name}.onnx.data", f"{name}.onnx"
    attach(model, regions, data_name)
    proto = ir.to_proto(model)
    reader, region_of = WeightReader(sources.tensors, piece), {r.name: r for r in regions}
    plan = Plan.of(proto, recipe).calibrated(
        calibration, lambda name: reader.reader(region_of[name]), sources.model_spec().head_dim
    )
    quantize_graph(proto, plan.weights, plan.forms, plan.rounding)
    stored = _stored(reader, regions, plan, on_write)
    data, places = write_weights(folder / data_name, stored)
    point_to(proto, data_name, places)
    files = {data_name: data}
    path = folder / graph_name
    path.write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    files[graph_name] = hash_file(path)
    spec = PieceSpec(
        file=graph_name,
        data=data_name,
        compute="fp32" if name == "mel" else dtype_name,
        weights=recorded(
            plan,
            {
                component: WeightScheme("fp32" if component in EXACT else dtype_name)
                for component in COMPONENTS[name]
            },
        ),
        inputs=_ports(piece.inputs),
        outputs=_ports(piece.outputs),
        dynamic=is_dynamic(plan, recipe),
    )
    return spec, files


def _stored(
    reader: WeightReader, regions: list[Region], plan: Plan, on_write: Callable[[int], None]
) -> Iterator[Stored]:
    """The data of every tensor, quantised where the plan says so."""
    for region in regions:
        form = plan.forms.get(region.name)
        if region.name in plan.scaling.factors and form is None:
            (whole,) = reader.parts(region, on_write)  # a vector
            floats = whole.view(SCALE_DTYPES[region.dtype])
            yield Stored(region.name, [scaled(plan, region.name, floats)])
        elif form is None:
            yield Stored(region.name, reader.parts(region, on_write))
        else:
            width, scales = region.dtype.itemsize, SCALE_DTYPES[region.dtype]

            def heard(count: int, width: int = width) -> None:
                on_write(count * width)

            yield from quantized(plan, region.name, reader.reader(region), scales, heard)


def _ports(ports: tuple[Port, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(p.name, str(p.dtype).removeprefix("torch."), p.axes) for p in ports)
