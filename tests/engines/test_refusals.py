"""Engines that do not fit are refused with a sentence that names the difference."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx
from mimo_edge.engines.profiles import Limits
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.backends.trt import TrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import MANIFEST, EngineManifest, read
from mimo_edge.runtime.bundle.engine_folders import Trust, Wanted, find
from mimo_edge.runtime.bundle.errors import EngineError
from mimo_edge.runtime.bundle.family import MIMO_V25_ASR, SPEECH_PIECES
from mimo_edge.runtime.bundle.files import write_text
from mimo_edge.runtime.bundle.manifest import MANIFEST as BUNDLE_MANIFEST
from mimo_edge.scripts.cli import main

from tests.bundles import hollow
from tests.engines.conftest import LIMITS, open_on
from tests.engines.fake_cuda import FakeCuda
from tests.engines.fake_tensorrt import FakeTensorRT
from tests.golden import Golden


def change(folder: Path, **identity: Any) -> None:
    """A whole engine, but of another build."""
    manifest = read(folder)
    other = dataclasses.replace(manifest.identity, **identity)
    plans = {p: dataclasses.replace(s, key=other.key(p)) for p, s in manifest.plans.items()}
    (folder / MANIFEST).write_text(EngineManifest(other, plans, "0" * 64).to_json())


def truncate(folder: Path) -> None:
    plan = folder / "backbone.plan"
    plan.write_bytes(plan.read_bytes()[:-1])


def alter(folder: Path) -> None:
    plan = folder / "backbone.plan"
    plan.write_bytes(bytes([plan.read_bytes()[0] ^ 1]) + plan.read_bytes()[1:])


def forget(folder: Path) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    del raw["plans"]["mel"]
    (folder / MANIFEST).write_text(json.dumps(raw))


def other_weights(folder: Path) -> None:
    pieces = dict(read(folder).identity.pieces)
    pieces["backbone"] = dataclasses.replace(pieces["backbone"], weights="0" * 64)
    change(folder, pieces=pieces)


def other_key(folder: Path) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    raw["plans"]["mel"]["key"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(raw))


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "other version": (lambda f: change(f, version="1.6.0"), r"version 1\.6\.0, here is 1\.7"),
    "other weights": (other_weights, r"weights 0{16} of backbone, the bundle has"),
    "other plan": (other_key, r"plan of mel is of another build"),
    "other GPU": (lambda f: change(f, capabilities=("12.0",)), r"12\.0, this GPU has 8\.9"),
    "truncated plan": (truncate, r"backbone\.plan is truncated"),
    "altered plan": (alter, r"backbone\.plan is truncated or altered"),
    "missing plan": (lambda f: (f / "mel.plan").unlink(), r"mel\.plan is missing"),
    "missing piece": (forget, "lacks mel"),
    "not finished": (lambda f: (f / MANIFEST).unlink(), "no finished engine"),
    "damaged manifest": (lambda f: (f / MANIFEST).write_text("{"), "is damaged"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(scratch: tuple[Bundle, Path], case: str) -> None:
    bundle, folder = scratch
    CASES[case][0](folder)
    cuda = FakeCuda()
    with pytest.raises(EngineError, match=CASES[case][1]) as error:
        open_on(bundle, cuda)
    assert "mimo-edge build" in str(error.value), "the remedy"
    assert error.value.exit_code == 6
    assert not cuda.leaks(), "a refusal leaves nothing on the GPU"


def test_a_gpu_that_the_engines_are_not_for(scratch: tuple[Bundle, Path]) -> None:
    """The remedy is the command for the GPU that is there."""
    with pytest.raises(EngineError, match=r"(?s)this GPU has 12\.0.*--target trt-rtx:12\.0"):
        open_on(scratch[0], FakeCuda(sm="12.0"))


def test_the_best_of_several(
    scratch: tuple[Bundle, Path], fake_engines: Callable[..., tuple[Bundle, Path]]
) -> None:
    """Most rows, then the longest cache; one that is damaged is passed over."""
    bundle, folder = scratch
    fake_engines("", limits=Limits(512, 1), bundle=bundle)
    fake_engines("", limits=Limits(160, LIMITS.max_batch), bundle=bundle)
    with open_on(bundle, FakeCuda()) as backend:
        assert (backend.identity.max_batch, backend.identity.max_seq) == (2, LIMITS.max_seq)
    truncate(folder)
    with open_on(bundle, FakeCuda()) as backend:
        assert (backend.identity.max_batch, backend.identity.max_seq) == (2, 160)


def test_classic_engines_are_for_one_gpu(
    golden: Golden, fake_engines: Callable[..., tuple[Bundle, Path]]
) -> None:
    bundle, _ = fake_engines(golden.lm_names[0], "trt")
    with pytest.raises(EngineError, match=r"(?s)this GPU has 9\.0.*--target trt"):
        open_on(bundle, FakeCuda(sm="9.0"), "trt")


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"broken": True}, "does not load"),
        ({"wrong_port": "codes"}, "does not have the bundle's ports: codes is"),
    ],
)
def test_plans_that_tensorrt_or_we_do_not_take(
    golden: Golden, fake_engines: Callable[..., tuple[Bundle, Path]], plan: dict, says: str
) -> None:
    cuda = FakeCuda()
    with pytest.raises(EngineError, match=says):
        open_on(fake_engines(golden.lm_names[0], **plan)[0], cuda)
    assert not cuda.leaks()


def test_tensorrt_says_that_a_plan_is_not_valid(scratch: tuple[Bundle, Path]) -> None:
    cuda = FakeCuda()
    trt = FakeTensorRT(cuda)
    trt.validity = tensorrt_rtx.EngineValidity.INVALID
    with pytest.raises(EngineError, match="UNSUPPORTED_CC"):
        TrtBackend(scratch[0], "trt-rtx", trt, CudaDevice(bindings=cuda))
    assert not cuda.leaks()


def test_no_engines(scratch: tuple[Bundle, Path]) -> None:
    with pytest.raises(EngineError, match=r"has no engines for trt .*mimo-edge build"):
        open_on(scratch[0], FakeCuda(), "trt")


def edited(bundle: Bundle, name: str) -> Bundle:
    """The same bundle, but for one of its files."""
    path = bundle.folder / BUNDLE_MANIFEST
    raw = json.loads(path.read_text())
    raw["files"][name]["sha256"] = "0" * 64
    path.unlink()  # a hard link
    write_text(path, json.dumps(raw))
    return Bundle.open(bundle.folder, verify=False)


def test_a_tokenizer_file_is_nothing_to_an_engine(scratch: tuple[Bundle, Path]) -> None:
    bundle, folder = scratch
    name = next(n for n in bundle.manifest.files if not n.endswith((".onnx", ".data")))
    altered = edited(bundle, name)
    assert altered.identity != bundle.identity
    with open_on(altered, FakeCuda()) as backend:
        assert backend.folder == folder


def test_engines_of_other_weights(scratch: tuple[Bundle, Path]) -> None:
    """They are not looked for, and refused where they are named."""
    bundle, folder = scratch
    altered = edited(bundle, "backbone.onnx.data")
    with pytest.raises(EngineError, match="has no engines for"):
        open_on(altered, FakeCuda())
    with pytest.raises(EngineError, match=r"weights .* of backbone, the bundle has 0{16}"):
        open_on(altered, FakeCuda(), trust=Trust(folder))


def test_a_bundle_that_only_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Engines are built of all pieces; ONNX Runtime takes those that are there."""
    bundle = hollow(tmp_path / "bundle")
    pieces = {n: p for n, p in bundle.manifest.pieces.items() if n not in SPEECH_PIECES}
    manifest = dataclasses.replace(bundle.manifest, architecture=MIMO_V25_ASR, pieces=pieces)
    write_text(bundle.folder / BUNDLE_MANIFEST, manifest.to_json())
    listening = Bundle.open(bundle.folder)
    assert not listening.speaks
    with pytest.raises(EngineError, match=r"only listens, .*--with-speech"):
        find(listening, Wanted("trt-rtx", "1.7.0", "8.9"))
    for words in (["--dry-run"], ["--print-trtexec"], []):
        command = ["build", str(bundle.folder), "--target", "trt-rtx:8.9", *words]
        assert main(command) == 6
        done = capsys.readouterr()
        assert "only listens" in done.err and done.out == ""
