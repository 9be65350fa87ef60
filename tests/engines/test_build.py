"""Rung 6: every piece builds for three GPUs on a machine that has none, as the bundle says."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import tensorrt_rtx
from onnx import TensorProto, helper

from engines import build as build_module
from engines.build import build_engines, identity_of
from engines.builder import build
from engines.profiles import Limits, profiles
from engines.recipe import for_bundle
from engines.target import Target
from runtime.bundle import PIECES, Bundle
from runtime.engine import EngineManifest, check, folder_of, read
from runtime.errors import EngineError
from tests.golden import Golden

TARGET = Target("trt-rtx", ("8.6", "8.9", "12.0"))
LIMITS = Limits(max_seq=256, max_batch=2)
BINDINGS = {"float32": "float", "float16": "half", "bfloat16": "bf16", "int64": "int64"}


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def built(
    request: pytest.FixtureRequest, golden: Golden, bundle_copy: Callable[..., Bundle]
) -> tuple[Bundle, Path, EngineManifest]:
    bundle = bundle_copy(golden.lm_names[0], request.param)
    recipe = for_bundle(bundle, None)
    identity = identity_of(bundle, recipe, TARGET, tensorrt_rtx.__version__, LIMITS)
    folder, manifest = build_engines(bundle, identity, TARGET, tensorrt_rtx, LIMITS)
    return bundle, folder, manifest


def test_every_piece_is_built_for_every_gpu(built: tuple[Bundle, Path, EngineManifest]) -> None:
    bundle, folder, manifest = built
    assert read(folder) == manifest
    for capability in TARGET.capabilities:
        check(folder, manifest, bundle, "trt-rtx", tensorrt_rtx.__version__, capability)
    for piece, spec in manifest.plans.items():
        assert spec.bytes == (folder / f"{piece}.plan").stat().st_size > 1000
        log = (folder / f"{piece}.log").read_text().lower()
        assert "unused" not in log and "error" not in log.replace("cuda error", "")


def test_ports_are_the_bundles(
    golden: Golden, bundle_copy: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Names, dtypes and shapes of the network that TensorRT made, against the manifest."""
    for dtype in ("fp16", "bf16"):
        bundle = bundle_copy(golden.lm_names[0], dtype)
        for piece in ("mel", "patch_encoder", "backbone"):
            ranges = profiles(bundle, piece, LIMITS)
            one = Target("trt-rtx", ("8.9",))
            made = build(tensorrt_rtx, one, bundle.path(piece), ranges, LIMITS.max_seq)
            spec = bundle.piece(piece)
            for ports, found in ((spec.inputs, made.inputs), (spec.outputs, made.outputs)):
                assert [p.name for p in ports] == list(found)
                for port in ports:
                    kind, shape = found[port.name]
                    assert kind == BINDINGS[port.dtype], port.name
                    for size, axis in zip(shape, port.axes, strict=True):
                        wanted = LIMITS.max_seq if axis == "capacity" else axis
                        assert size == (-1 if isinstance(wanted, str) else wanted), port.name


def test_finished_plans_are_kept(
    built: tuple[Bundle, Path, EngineManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, folder, manifest = built
    (folder / "mel.plan").write_bytes(b"damaged")
    (folder / "engine.json").unlink()
    seen = []
    real = build_module.build
    monkeypatch.setattr(
        build_module, "build", lambda *a, **k: seen.append(a[2].stem) or real(*a, **k)
    )
    again, _ = build_engines(bundle, manifest.identity, TARGET, tensorrt_rtx, LIMITS)
    assert again == folder and seen == ["mel"], "only what was damaged is built again"
    assert (folder / "engine.json").is_file()


def test_interrupted(
    golden: Golden, bundle_copy: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second piece: no engine.json, nothing temporary, and the first plan stays."""
    bundle = bundle_copy(golden.lm_names[0])
    recipe = for_bundle(bundle, None)
    identity = identity_of(bundle, recipe, TARGET, tensorrt_rtx.__version__, LIMITS)
    real = build_module.build

    def stop(*args: object, **kwargs: object) -> object:
        if args[2].stem != PIECES[0]:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(build_module, "build", stop)
    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, identity, TARGET, tensorrt_rtx, LIMITS)
    folder = folder_of(bundle, identity)
    assert {p.name for p in folder.iterdir()} == {"mel.plan", "mel.log", "mel.json"}
    with pytest.raises(EngineError, match="no finished engine"):
        read(folder)


def attention_graph(path: Path, *, with_lengths: bool) -> Path:
    """One Attention node, with or without the lengths that TensorRT drops silently."""

    def info(name: str, time: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 4, time, 64])

    inputs = [info("q", 1), info("k", 16), info("v", 16)]
    names = ["q", "k", "v"]
    if with_lengths:
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT64, [1]))
        names += ["", "", "", "lengths"]
    node = helper.make_node("Attention", names, ["y"])
    graph = helper.make_graph([node], "attention", inputs, [info("y", 1)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    onnx.save(model, path)
    return path


def test_an_unused_input_fails_the_build(tmp_path: Path) -> None:
    """The trap that makes a decode step wrong with no error: TensorRT only mentions it."""
    one = Target("trt-rtx", ("8.9",))
    fine = attention_graph(tmp_path / "fine.onnx", with_lengths=False)
    assert build(tensorrt_rtx, one, fine, [{}], 16).plan
    trap = attention_graph(tmp_path / "trap.onnx", with_lengths=True)
    with pytest.raises(EngineError, match="Unused Input: lengths"):
        build(tensorrt_rtx, one, trap, [{}], 16)


def test_an_unknown_operator_fails_the_build(tmp_path: Path) -> None:
    node = helper.make_node("DFT", ["x"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 2])
    graph = helper.make_graph([node], "dft", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    onnx.save(model, tmp_path / "dft.onnx")
    with pytest.raises(EngineError, match=r"dft\.onnx"):
        build(tensorrt_rtx, Target("trt-rtx", ("8.9",)), tmp_path / "dft.onnx", [{}], 16)


def test_identity_says_everything(built: tuple[Bundle, Path, EngineManifest]) -> None:
    bundle, folder, manifest = built
    raw = json.loads((folder / "engine.json").read_text())["identity"]
    assert raw["bundle"] == bundle.identity and raw["version"] == tensorrt_rtx.__version__
    assert raw["capabilities"] == list(TARGET.capabilities) and raw["max_seq"] == LIMITS.max_seq
    for piece in PIECES:
        assert {p.name for p in bundle.piece(piece).inputs} == set(raw["profiles"][piece][0])
    assert manifest.identity.key == read(folder).identity.key
