"""Bundles exported from a golden folder or from nano, kept between test runs; and a hollow one.

Tracing takes about a minute, so a bundle is kept in build/test-bundles under a hash of everything
that it depends on: the models, and the code of the exporter and of the reference.
"""

import hashlib
from pathlib import Path

from mimo_edge.export.exporter import Sources, export_bundle, tool_versions
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.manifest import (
    MANIFEST,
    PIECES,
    SCHEMA,
    Manifest,
    ModelSpec,
    PieceSpec,
)

from tests.golden import Golden

ROOT = Path(__file__).parent.parent
CODE = ("mimo_ref/*.py", "export/*.py", "runtime/bundle/manifest.py")


NANO = ROOT / "assets" / "nano"
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
    """A bundle that opens and has no ports, whose graphs are empty files: nothing is traced."""
    folder.mkdir()
    pieces, files = {}, {}
    for number, piece in enumerate(PIECES, start=1):
        pieces[piece] = PieceSpec(f"{piece}.onnx", "fp32" if piece == "mel" else precision, (), ())
        for name, content in ((f"{piece}.onnx", b""), (f"{piece}.onnx.data", bytes(1000 * number))):
            (folder / name).write_bytes(content)
            files[name] = hash_file(folder / name)
    write_text(folder / MANIFEST, Manifest(SCHEMA, SPEC, pieces, files, {}, "").to_json())
    return Bundle.open(folder)


def exported(golden: Golden, lm: str, dtype: str = "fp32") -> Path:
    """The bundle of one of the folder's language models and its audio tokenizer."""
    pair = golden.folder / lm, golden.folder / "audio_tokenizer"
    return _exported(*pair, golden.folder / "text_tokenizer", dtype)


def exported_nano() -> Path:
    """The bundle of nano, in float32."""
    lm = NANO / "language_model"
    return _exported(lm, NANO / "audio_tokenizer", lm, "fp32")


def _exported(lm: Path, audio_tokenizer: Path, text_tokenizer: Path, dtype: str) -> Path:
    digest = hashlib.sha256(f"{dtype} {tool_versions()}".encode())
    for path in sorted(p for pattern in CODE for p in ROOT.glob(pattern)):
        digest.update(path.read_bytes())
    for path in sorted(p for folder in (lm, audio_tokenizer) for p in folder.iterdir()):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "test-bundles" / digest.hexdigest()[:16]
    if not (folder / MANIFEST).is_file():
        sources = Sources.open(lm, audio_tokenizer, text_tokenizer)
        export_bundle(sources, folder, dtype, force=True)
    return folder
