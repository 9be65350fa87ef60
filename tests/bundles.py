"""Bundles exported from a golden folder or from nano, kept between test runs; and a hollow one.

Tracing takes about a minute, so a bundle is kept in build/test-bundles under a hash of everything
that it depends on: the models, and the code of the exporter and of the reference.
"""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mimo_edge.engines.weight_file import point_to
from mimo_edge.export.exporter import export_bundle, tool_versions
from mimo_edge.export.sources import Sources
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.data_files import data_file
from mimo_edge.runtime.bundle.dtypes import DTYPES, PRECISIONS
from mimo_edge.runtime.bundle.family import MIMO_AUDIO
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.manifest import (
    COMPONENTS,
    MANIFEST,
    PIECES,
    SCHEMA,
    Manifest,
    ModelSpec,
    PieceSpec,
    TensorSpec,
    WeightScheme,
)
from onnx import TensorProto, helper

from tests import v25_asr
from tests.golden import Golden

ROOT = Path(__file__).parent.parent
CODE = (
    "mimo_ref/*.py",
    "export/*.py",
    "engines/weight_file.py",
    "runtime/bundle/data_files.py",
    "runtime/bundle/dtypes.py",
    "runtime/bundle/manifest.py",
    "runtime/chat/*.py",
)


NANO = ROOT / "assets" / "nano"
Ports = tuple[TensorSpec, ...]
LOCAL = 4  # width of the patch decoder
SPEC = ModelSpec(
    group_size=4,
    n_q=2,
    code_vocab=(17, 9),
    empty_codes=(16, 8),
    delays=(0, 1),
    hidden_size=8,
    vocab_size=32,
    layers=1,
    kv_heads=1,
    head_dim=8,
    context=64,
    sampling_rate=24000,
    n_fft=960,
    hop_length=240,
    n_mels=128,
    mel_per_frame=4,
    samples_per_frame=960,
    max_audio_seconds=60,
)


def hollow(folder: Path, precision: str = "fp32") -> Bundle:
    """A bundle that opens, whose graphs are empty files: nothing is traced."""
    folder.mkdir()
    pieces, files, ports = {}, {}, handed_on(SPEC, PRECISIONS[precision].name)
    for piece in PIECES:
        weights = {component: WeightScheme(precision) for component in COMPONENTS[piece]}
        compute = "fp32" if piece == "mel" else precision
        inputs, outputs = ports.get(piece, ((), ()))
        spec = PieceSpec(f"{piece}.onnx", data_file(piece), compute, weights, inputs, outputs)
        pieces[piece], data = spec, bytes(1000 * (1 + PIECES.index(spec.data.partition(".")[0])))
        for name, content in ((spec.file, _graph(piece, spec, len(data))), (spec.data, data)):
            (folder / name).write_bytes(content)
            files[name] = hash_file(folder / name)
    states = PRECISIONS[precision].name
    about = (MIMO_AUDIO, states, states, SPEC)
    manifest = Manifest(SCHEMA, *about, pieces, files, {}, "", {}, precision)
    write_text(folder / MANIFEST, manifest.to_json())
    return Bundle.open(folder)


def _graph(name: str, spec: PieceSpec, size: int) -> bytes:
    """A graph of ports, and of one weight that is its whole data file."""
    sides = [
        [
            helper.make_tensor_value_info(
                port.name, getattr(TensorProto, DTYPES[port.dtype].onnx), port.axes
            )
            for port in ports
        ]
        for ports in (spec.inputs, spec.outputs)
    ]
    weight = TensorProto(name="weight", data_type=TensorProto.UINT8, dims=[size])
    model = helper.make_model(helper.make_graph([], name, *sides, initializer=[weight]))
    point_to(model, spec.data, {"weight": (0, size)})
    return model.SerializeToString()


def handed_on(model: ModelSpec, states: str) -> dict[str, tuple[Ports, Ports]]:
    """The ports over which pieces meet, and none besides: piece -> inputs, outputs."""
    mel = TensorSpec("mel", "float32", ("mel_frames", model.n_mels))
    embeddings = TensorSpec("embeddings", states, ("batch", "time", model.hidden_size))
    hidden = TensorSpec("local_hidden", states, ("batch", LOCAL))
    x, following = (TensorSpec(name, states, ("batch", LOCAL)) for name in ("x", "next"))
    uniforms = TensorSpec("uniforms", "float32", ("batch", model.n_q))
    logits = TensorSpec("logits", "float32", ("batch", model.vocab_size))
    codes = TensorSpec("codes", "int64", ("batch", "patches", model.n_q, model.group_size))

    def cache(prefix: str) -> list[TensorSpec]:
        axes = ("batch", model.kv_heads, "capacity", model.head_dim)
        names = [f"{prefix}_{kind}_{n}" for kind in ("keys", "values") for n in range(model.layers)]
        return [TensorSpec(name, states, axes) for name in names]

    return {
        "mel": ((), (mel,)),
        "tokenizer_encoder": ((mel,), ()),
        "patch_encoder": ((codes,), (embeddings,)),
        "backbone": ((embeddings, *cache("past")), (hidden, logits, *cache("present"))),
        "patch_decoder": ((x, uniforms), (following,)),
    }


def exported(golden: Golden, lm: str, dtype: str = "fp32") -> Path:
    """The bundle of one of the folder's language models and its audio tokenizer."""
    pair = golden.folder / lm, golden.folder / "audio_tokenizer"
    return _exported(*pair, golden.folder / "text_tokenizer", dtype)


def exported_nano() -> Path:
    """The bundle of nano, in float32."""
    lm = NANO / "language_model"
    return _exported(lm, NANO / "audio_tokenizer", lm, "fp32")


def exported_v25_asr() -> Path:
    """The bundle of the golden MiMo-V2.5-ASR, with what makes speech: the goldens hold codes."""
    lm = v25_asr.LANGUAGE_MODEL
    return _exported(lm, v25_asr.AUDIO_TOKENIZER, lm, "fp32")


def _exported(lm: Path, audio_tokenizer: Path, text_tokenizer: Path, dtype: str) -> Path:
    digest = hashlib.sha256(f"{dtype} {tool_versions()}".encode())
    for path in sorted(p for pattern in CODE for p in ROOT.glob(pattern)):
        digest.update(path.read_bytes())
    for path in sorted(p for folder in (lm, audio_tokenizer) for p in folder.iterdir()):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "test-bundles" / digest.hexdigest()[:16]
    with _alone(folder):
        if not (folder / MANIFEST).is_file():
            sources = Sources.open(lm, audio_tokenizer, text_tokenizer)
            export_bundle(sources, folder, dtype, force=True, speech=True)
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Tests run in several processes: who comes second waits for the bundle."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
