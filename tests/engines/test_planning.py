"""Targets, recipes, profiles and what the command says without building anything."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import tensorrt_rtx
from mimo_edge.engines import recipe, target
from mimo_edge.engines.build_log import BuildLog, logger_of
from mimo_edge.engines.bundle_recipe import for_bundle
from mimo_edge.engines.lowering import fix_capacity, widen_transposed_convolutions
from mimo_edge.engines.planner import estimate_piece
from mimo_edge.engines.profiles import Limits, profiles
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine_folders import home_of
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import PIECES
from mimo_edge.scripts.cli import main

from tests.golden import Golden


def test_targets() -> None:
    assert target.parse("trt-rtx:8.6,8.9").capabilities == ("8.6", "8.9")
    assert target.parse("trt").module == "tensorrt"
    assert target.parse("trt").on_gpu("8.7").capabilities == ("8.7",)
    assert target.parse("trt-rtx:8.9").on_gpu("8.6").capabilities == ("8.9",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trt-rtx", "names no compute capability"),
        ("trt-rtx:8.7", "Jetson Orin"),
        ("trt-rtx:7.5", "--backend ort-cuda"),
        ("trt-rtx:9.0", "--target trt"),
        ("trt:8.9", "the GPU that is there"),
        ("tpu", "there is no target"),
    ],
)
def test_targets_that_are_none(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        target.parse(text)


def test_recipes(golden: Golden, bundle_copy: Callable[..., Bundle]) -> None:
    bundle = bundle_copy(golden.lm_names[0])
    assert for_bundle(bundle, None).name == "fp32"
    with pytest.raises(InputError, match="--recipe fp16"):
        for_bundle(bundle, "fp16")
    with pytest.raises(InputError, match="no recipe"):
        recipe.load("fp7")


def test_profiles_cover_what_the_runtime_sends(
    golden: Golden, bundle_copy: Callable[..., Bundle]
) -> None:
    bundle = bundle_copy(golden.lm_names[0])
    for piece in PIECES:
        made = profiles(bundle, piece, Limits(max_seq=1000, max_batch=3))
        for shapes in made:
            for smallest, typical, largest in shapes.values():
                assert all(a <= b <= c for a, b, c in zip(smallest, typical, largest, strict=True))
    (shapes,) = profiles(bundle, "backbone", Limits(1000, 3))
    assert [shape[:2] for shape in shapes["embeddings"]] == [(1, 1), (3, 1), (3, 256)]
    assert {shape[2] for shape in shapes["past_keys_0"]} == {1000}
    with pytest.raises(InputError, match="--max-seq"):
        Limits(10**6).check(bundle.model.context)


def test_lowering_fixes_every_cache(golden: Golden, bundle_copy: Callable[..., Bundle]) -> None:
    model = onnx.load(bundle_copy(golden.lm_names[0]).path("backbone"), load_external_data=False)
    fix_capacity(model, 77)
    names = [
        d.dim_param
        for v in (*model.graph.input, *model.graph.output, *model.graph.value_info)
        for d in v.type.tensor_type.shape.dim
    ]
    assert "capacity" not in names
    cache = next(v for v in model.graph.input if v.name == "past_keys_0")
    assert cache.type.tensor_type.shape.dim[2].dim_value == 77


def test_lowering_widens_bf16_transposed_convolutions(
    golden: Golden, bundle_copy: Callable[..., Bundle]
) -> None:
    """Only in bf16: other graphs are left alone, which the fp32 goldens on the fake GPU hold."""
    for dtype, casts in (("fp32", 0), ("bf16", 4)):
        path = bundle_copy(golden.lm_names[0], dtype).path("tokenizer_decoder")
        model = onnx.load(path, load_external_data=False)
        before = len(model.graph.node)
        widen_transposed_convolutions(model)
        assert len(model.graph.node) == before + 2 * casts
        made_by = {name: node for node in model.graph.node for name in node.output}
        for node in model.graph.node:
            if node.op_type == "ConvTranspose" and casts:
                assert all(made_by[name].op_type == "Cast" for name in node.input)


def test_dry_run(
    golden: Golden, bundle_copy: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_copy(golden.lm_names[0])
    words = ["build", str(bundle.folder), "--target", "trt-rtx:8.9", "--dry-run"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(piece in out for piece in PIECES) and "estimates" in out
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["piece"] for row in rows] == list(PIECES)
    assert all(row["engine_bytes"] > 0 and row["seconds"] > 0 for row in rows)
    assert not (bundle.folder / "engines").exists() and not home_of(bundle).exists()


def test_a_damaged_bundle_is_not_built(
    golden: Golden, bundle_copy: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_copy(golden.lm_names[0])
    (bundle.folder / "mel.onnx").unlink()
    (bundle.folder / "mel.onnx").write_bytes(b"x" * bundle.manifest.files["mel.onnx"].bytes)
    assert main(["build", str(bundle.folder), "--target", "ort-cpu"]) == 2
    assert "mel.onnx" in capsys.readouterr().err


def test_trtexec_commands(
    golden: Golden, bundle_copy: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    """The tool cannot lower a graph: the commands name graphs that need no lowering, which
    TensorRT parses, weights included, with every shape named that it asks for."""
    bundle = bundle_copy(golden.lm_names[0], "bf16")
    words = ["build", str(bundle.folder), "--max-seq", "64", "--max-batch", "2", "--print-trtexec"]
    for name, tool in (("trt-rtx:8.6,8.9", "tensorrt_rtx"), ("trt", "trtexec")):
        assert main([*words, "--target", name]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(PIECES)
        for piece, line in zip(PIECES, lines, strict=True):
            command = shlex.split(line)
            assert command[0] == tool and "--noTF32" in command
            flags = dict(word.split("=", 1) for word in command[1:] if "=" in word)
            assert flags["--decomposableAttentions"] == "*"
            graph = Path(flags["--onnx"])
            for end in ("min", "opt", "max"):
                shapes = dict(item.split(":") for item in flags[f"--{end}Shapes"].split(","))
                assert set(shapes) == {port.name for port in bundle.piece(piece).inputs}
            log = BuildLog()
            logger = logger_of(tensorrt_rtx, log)
            network = tensorrt_rtx.Builder(logger).create_network(0)
            parser = tensorrt_rtx.OnnxParser(network, logger)
            assert parser.parse_from_file(str(graph)), log.lines
            assert not log.fatal
        if tool == "tensorrt_rtx":
            assert all("--computeCapabilities=86,89" in line for line in lines)


@pytest.mark.parametrize(
    ("piece", "weights", "nodes", "memory", "seconds"),
    [  # GB, number, GB, seconds
        ("backbone", 3.818, 1369, 11.88, 49.1),
        ("patch_encoder", 0.687, 334, 2.42, 5.5),
        ("patch_decoder", 0.149, 674, 1.02, 5.0),
    ],
)
def test_estimates_are_near_what_was_measured(
    piece: str, weights: float, nodes: int, memory: float, seconds: float
) -> None:
    """docs/tensorrt.md, the real model in int4-edge: memory and time on two cores."""
    found = estimate_piece(piece, int(1e9 * weights), nodes)
    assert 0.7 < found.memory_bytes / 1e9 / memory < 1.3
    assert 0.7 < found.seconds / seconds < 2


def test_a_target_that_is_not_installed(
    golden: Golden,
    bundle_copy: Callable[..., Bundle],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    bundle = bundle_copy(golden.lm_names[0])
    code = main(["build", str(bundle.folder), "--target", "trt"])
    assert code == 3 and "JetPack" in capsys.readouterr().err
