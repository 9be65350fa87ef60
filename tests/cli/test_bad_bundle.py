"""Bundles and checkpoints that are not whole, not ours, or not for this machine."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from mimo_edge.runtime.bundle.manifest import MANIFEST, SCHEMA

from tests.cli.conftest import Outcome
from tests.golden import Golden

Run = Callable[..., Outcome]
TENSORRT = {"trt-rtx": "tensorrt_rtx", "trt": "tensorrt"}  # backend -> module


def edit(path: Path, change: Callable[[dict], object]) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def edit_manifest(bundle: Path, change: Callable[[dict], object]) -> None:
    edit(bundle / MANIFEST, change)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# what is wrong -> (how it comes about, what the message says, the remedy in it)
DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing graph": (
        lambda b: (b / "mel.onnx").unlink(),
        "/mel.onnx is missing",
        "Copy the whole bundle",
    ),
    "missing weights": (
        lambda b: (b / "backbone.onnx.data").unlink(),
        "/backbone.onnx.data is missing",
        "Copy the whole bundle",
    ),
    "missing tokenizer": (
        lambda b: (b / "tokenizer.json").unlink(),
        "/tokenizer.json is missing",
        "Copy the whole bundle",
    ),
    "truncated": (
        lambda b: cut(b / "backbone.onnx.data"),
        "/backbone.onnx.data has",
        "truncated or altered. Copy the whole bundle again",
    ),
    "altered, same size": (
        lambda b: flip(b / "backbone.onnx.data"),
        "/backbone.onnx.data was altered",
        "Copy the whole bundle again",
    ),
    "of the version before": (
        lambda b: edit_manifest(b, lambda r: r.update(schema=SCHEMA - 1)),
        f"schema version {SCHEMA - 1}, this program reads {SCHEMA}",
        "Export the checkpoint again with this version",
    ),
    "other schema": (
        lambda b: edit_manifest(b, lambda r: r.update(schema=99)),
        f"schema version 99, this program reads {SCHEMA}",
        "Export the checkpoint again",
    ),
    "half a manifest": (lambda b: cut(b / MANIFEST), f"{MANIFEST} is damaged", "Export the bundle"),
    "an empty manifest": (
        lambda b: (b / MANIFEST).write_text("{}"),
        f"{MANIFEST} is damaged",
        "Export the bundle",
    ),
    "binary manifest": (
        lambda b: (b / MANIFEST).write_bytes(b"\xff\xfe\0"),
        f"{MANIFEST} is damaged",
        "Export the bundle",
    ),
    "manifest without model": (
        lambda b: edit_manifest(b, lambda r: r.pop("model")),
        f"{MANIFEST} is damaged",
        "Export the bundle",
    ),
    "a size that is a word": (
        lambda b: edit_manifest(b, lambda r: r["model"].update(group_size="4")),
        "model.group_size is '4'",
        "Export the bundle",
    ),
    "sizes that are one number": (
        lambda b: edit_manifest(b, lambda r: r["model"].update(delays=7)),
        "model.delays is 7",
        "Export the bundle",
    ),
    "a piece without a file": (
        lambda b: edit_manifest(b, lambda r: r["pieces"]["mel"].update(file="../mel.onnx")),
        "the file of piece mel, '../mel.onnx', is not listed",
        "Export the bundle",
    ),
    "brackets without end": (
        lambda b: (b / MANIFEST).write_text("[" * 200_000),
        f"{MANIFEST} is damaged",
        "Export the bundle",
    ),
    "missing piece": (
        lambda b: edit_manifest(b, lambda r: r["pieces"].pop("mel")),
        "lacks the pieces mel",
        "Export it again",
    ),
    "no manifest": (lambda b: (b / MANIFEST).unlink(), "is not a bundle", "mimo-edge export"),
    "no folder": (lambda b: shutil.rmtree(b), "is not a bundle", "mimo-edge export"),
    "a file": (
        lambda b: (shutil.rmtree(b), b.write_text("")),
        "is not a bundle",
        "mimo-edge export",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged(mimo_edge: Run, own_bundle: Path, case: str) -> None:
    damage, says, remedy = DAMAGE[case]
    damage(own_bundle)
    for words in (("run", "chat", own_bundle, "hi"), ("inspect", own_bundle)):
        mimo_edge(*words).refused(2, "/bundle", says, remedy)


def test_no_tokenizer_at_all(mimo_edge: Run, own_bundle: Path) -> None:
    (own_bundle / "tokenizer.json").unlink()
    edit_manifest(own_bundle, lambda raw: raw["files"].pop("tokenizer.json"))
    done = mimo_edge("run", "chat", own_bundle, "hi")
    done.refused(2, "/bundle: no text tokenizer", "tokenizer.json", "Copy them from")


def test_unverified(mimo_edge: Run, own_bundle: Path) -> None:
    """--no-verify trusts the content, but not what costs nothing to check."""
    flip(own_bundle / "mel.onnx.data")
    words = ("run", "chat", own_bundle, "hi", "--max-new", 2)
    mimo_edge(*words).refused(2, "/mel.onnx.data was altered")
    assert mimo_edge(*words, "--no-verify").code == 0
    cut(own_bundle / "mel.onnx.data")
    mimo_edge(*words, "--no-verify").refused(2, "/mel.onnx.data has", "truncated")


def test_what_this_machine_has_not(
    mimo_edge: Run, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = ("run", "chat", own_bundle, "hi")
    edit_manifest(own_bundle, lambda raw: raw["pieces"]["backbone"].update(compute="bf16"))
    mimo_edge(*chat).refused(3, "bf16", "--dtype fp32")
    cpu_only = ["CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: cpu_only)
    mimo_edge(*chat, "--backend", "ort-cuda").refused(
        3, "no CUDAExecutionProvider", "Install onnxruntime-gpu", "--backend ort-cpu"
    )
    for name, module in TENSORRT.items():
        monkeypatch.setitem(sys.modules, module, None)  # as if not installed
        done = mimo_edge(*chat, "--backend", name)
        done.refused(3, f"{module} is not installed", 'pip install "tensorrt-rtx')


def test_no_engines(mimo_edge: Run, own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, with TensorRT, but before `mimo-edge build`."""
    device = Mock(**{"return_value.capability.return_value": "8.9"})
    monkeypatch.setattr("mimo_edge.runtime.backends.trt.CudaDevice", device)
    for name, module in TENSORRT.items():
        fake = SimpleNamespace(__version__="1.7.0")
        monkeypatch.setitem(sys.modules, module, fake)
        done = mimo_edge("run", "chat", own_bundle, "hi", "--backend", name)
        done.refused(6, f"/bundle has no engines for {name} 1.7.0", "mimo-edge build", name)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(golden.folder / golden.lm_names[0], tmp_path / "checkpoint"))


def no_model(folder: Path) -> None:
    """A language model, but another one."""
    qwen = {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(qwen))


NO_CHECKPOINT: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "plain Qwen2": (
        no_model,
        "/checkpoint/config.json: not the config of a MiMo-Audio",
        "Give the folder",
    ),
    "damaged config": (
        lambda c: cut(c / "config.json"),
        "/checkpoint/config.json cannot be read",
        "Download it again",
    ),
    "config of brackets": (
        lambda c: (c / "config.json").write_text("[" * 200_000),
        "/checkpoint/config.json cannot be read",
        "Download it again",
    ),
    "no config": (
        lambda c: (c / "config.json").unlink(),
        "/checkpoint/config.json is missing",
        "Give a released checkpoint's folder",
    ),
    "no weights": (
        lambda c: [p.unlink() for p in c.glob("*.safetensors")],
        "/checkpoint has not any *.safetensors",
        "Download the missing files",
    ),
    "truncated weights": (
        lambda c: [cut(p) for p in c.glob("*.safetensors")],
        "truncated",
        "Download it again",
    ),
    "weights of another size": (
        lambda c: edit(c / "config.json", lambda r: r.update(vocab_size=r["vocab_size"] + 64)),
        "does not match its config.json",
        "downloaded whole",
    ),
    "no folder": (
        lambda c: shutil.rmtree(c),
        "/checkpoint/config.json is missing",
        "Give a released checkpoint's folder",
    ),
}


@pytest.mark.parametrize("case", NO_CHECKPOINT)
def test_not_a_checkpoint(
    mimo_edge: Run, golden: Golden, checkpoint: Path, out: Path, case: str
) -> None:
    damage, says, remedy = NO_CHECKPOINT[case]
    damage(checkpoint)
    tokenizers = ("--audio-tokenizer", golden.folder / "audio_tokenizer")
    text = ("--text-tokenizer", golden.folder / "text_tokenizer")
    mimo_edge("export", checkpoint, *tokenizers, *text, "-o", out).refused(2, says, remedy)


def test_tokenizers_that_are_none(
    mimo_edge: Run, golden: Golden, checkpoint: Path, out: Path, tmp_path: Path
) -> None:
    good = golden.folder / "audio_tokenizer"
    text = ("--text-tokenizer", golden.folder / "text_tokenizer", "-o", out)

    def export(audio: Path, *words: object) -> Outcome:
        return mimo_edge("export", checkpoint, "--audio-tokenizer", audio, *words)

    export(tmp_path / "none", *text).refused(2, "/none/config.json is missing", "released")
    export(checkpoint, *text).refused(2, "/checkpoint/config.json", "audio tokenizer")
    export(good, "-o", out).refused(2, "/checkpoint: no text tokenizer", "Copy them from")
    mimo_edge("export", checkpoint, *text).refused(2, "--audio-tokenizer")


def test_output_that_must_not_be_replaced(
    mimo_edge: Run, golden: Golden, checkpoint: Path, out: Path
) -> None:
    tokenizers = ("--audio-tokenizer", golden.folder / "audio_tokenizer")
    words = ("export", checkpoint, *tokenizers)
    words += ("--text-tokenizer", golden.folder / "text_tokenizer", "-o")
    out.mkdir()
    (out / "precious").write_text("")
    mimo_edge(*words, out, "--force").refused(2, "/out holds precious and is no bundle")
    (out / "bundle.json").write_text("")
    mimo_edge(*words, out).refused(2, "/out exists", "pass --force")
    file = out / "precious"
    mimo_edge(*words, file, "--force").refused(2, "/out/precious is a file", "Choose another name")
    mimo_edge(*words, file / "x").refused(2, "/out/precious/x", "Check the path")
    for folder in (checkpoint, checkpoint.parent):  # --force is no reason to lose the weights
        done = mimo_edge(*words, folder, "--force")
        done.refused(2, "holds the checkpoint", "Choose another name")


def test_no_such_command(mimo_edge: Run, bundle: Path) -> None:
    mimo_edge("fly").refused(2, "invalid choice: 'fly'", "choose from")
    mimo_edge("run", "sing", bundle).refused(2, "invalid choice: 'sing'", "choose from")
    mimo_edge("run", "asr", bundle).refused(2, "required: AUDIO")
    mimo_edge().refused(2, "required: COMMAND")
