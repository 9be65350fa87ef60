"""Bundles and checkpoints that are not whole, not ours, or not for this machine."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.bundle import MANIFEST
from tests.cli.conftest import CLIP, Outcome
from tests.golden import Golden

Run = Callable[..., Outcome]


def edit(bundle: Path, change: Callable[[dict], object]) -> None:
    raw = json.loads((bundle / MANIFEST).read_text())
    change(raw)
    (bundle / MANIFEST).write_text(json.dumps(raw))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing file": (lambda b: (b / "mel.onnx").unlink(), ("mel.onnx", "missing")),
    "truncated file": (
        lambda b: (b / "backbone.onnx.data").write_bytes(b"short"),
        ("backbone.onnx.data", "truncated"),
    ),
    "altered file": (lambda b: flip(b / "backbone.onnx.data"), ("backbone.onnx.data", "sha256")),
    "other schema": (lambda b: edit(b, lambda r: r.update(schema=99)), ("99", "Export")),
    "no json": (lambda b: (b / MANIFEST).write_text("{"), (MANIFEST, "damaged")),
    "json of something else": (lambda b: (b / MANIFEST).write_text("{}"), (MANIFEST, "damaged")),
    "missing piece": (lambda b: edit(b, lambda r: r["pieces"].pop("mel")), ("lacks", "mel")),
    "no bundle": (lambda b: (b / MANIFEST).unlink(), ("not a bundle", "mimo-edge export")),
    "no tokenizer": (
        lambda b: (
            (b / "tokenizer.json").unlink(),
            edit(b, lambda r: r["files"].pop("tokenizer.json")),
        ),
        ("tokenizer.json",),
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged(mimo_edge: Run, own_bundle: Path, case: str) -> None:
    DAMAGE[case][0](own_bundle)
    mimo_edge("run", "chat", own_bundle, "hi").refused(2, *DAMAGE[case][1])
    if case != "no tokenizer":
        mimo_edge("inspect", own_bundle).refused(2, *DAMAGE[case][1])


def test_what_this_machine_has_not(mimo_edge: Run, own_bundle: Path) -> None:
    mimo_edge("run", "chat", own_bundle, "hi", "--backend", "ort-cuda").refused(
        3, "onnxruntime-gpu"
    )
    edit(own_bundle, lambda raw: raw["pieces"]["backbone"].update(precision="bf16"))
    mimo_edge("run", "chat", own_bundle, "hi").refused(3, "bf16", "--dtype")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_not_a_checkpoint(mimo_edge: Run, golden: Golden, tmp_path: Path, out: Path) -> None:
    tokenizer = golden.folder / "audio_tokenizer"
    to = ("--audio-tokenizer", tokenizer, "-o", out)
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text(
        json.dumps({"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2})
    )
    mimo_edge("export", tmp_path / "qwen", *to).refused(2, "qwen", "MiMo-Audio")
    mimo_edge("export", tmp_path / "none", *to).refused(2, "none")
    mimo_edge("export", golden.folder / "lm_a", *to).refused(2, "tokenizer.json")
    text = ("--text-tokenizer", golden.folder / "text_tokenizer")
    wrong = ("--audio-tokenizer", golden.folder / "lm_a", "-o", out)
    mimo_edge("export", golden.folder / "lm_a", *wrong, *text).refused(2, "audio tokenizer")
    assert not out.exists() and not out.with_name("out.partial").exists()


def test_output_exists(mimo_edge: Run, golden: Golden, out: Path) -> None:
    out.mkdir()
    (out / "precious").write_text("")
    lm = golden.lm_names[0]
    words = ("--audio-tokenizer", golden.folder / "audio_tokenizer")
    text = ("--text-tokenizer", golden.folder / "text_tokenizer", "-o", out)
    mimo_edge("export", golden.folder / lm, *words, *text).refused(2, str(out), "--force")
    assert (out / "precious").exists()


def test_no_such_command(mimo_edge: Run, bundle: Path) -> None:
    mimo_edge("fly").refused(2, "invalid choice")
    mimo_edge("run", "sing", bundle).refused(2, "invalid choice")
    mimo_edge("run", "asr", bundle).refused(2, "AUDIO")
    assert CLIP.is_file()
