"""Targets, recipes, profiles and what the command says without building anything."""

import json
import sys
from collections.abc import Callable

import onnx
import pytest

from engines import recipe, target
from engines.lowering import fix_capacity, widen_transposed_convolutions
from engines.profiles import Limits, profiles
from runtime.bundle import PIECES, Bundle
from runtime.errors import InputError
from scripts.cli import main
from tests.golden import Golden


def test_targets() -> None:
    assert target.parse("trt-rtx:8.6,8.9").capabilities == ("8.6", "8.9")
    assert target.parse("trt").module == "tensorrt"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trt-rtx", "names no compute capability"),
        ("trt-rtx:8.7", "Jetson Orin"),
        ("trt-rtx:9.0", "--target trt"),
        ("trt:8.9", "the GPU that is there"),
        ("tpu", "there is no target"),
    ],
)
def test_targets_that_are_none(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        target.parse(text)


def test_recipes(golden: Golden, bundle_copy: Callable[..., Bundle]) -> None:
    assert {"fp32", "fp16", "bf16"} <= set(recipe.names())
    bundle = bundle_copy(golden.lm_names[0])
    assert recipe.for_bundle(bundle, None).name == "fp32"
    with pytest.raises(InputError, match="--dtype fp16"):
        recipe.for_bundle(bundle, "fp16")
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
    assert [shape[:2] for shape in shapes["embeddings"]] == [(1, 1), (3, 1), (3, 512)]
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


def test_dry_run_and_trtexec(
    golden: Golden, bundle_copy: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_copy(golden.lm_names[0])
    words = ["build", str(bundle.folder), "--target", "trt-rtx:8.9", "--max-seq", "64"]
    assert main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert all(piece in out for piece in PIECES) and json.loads(out.splitlines()[-1])
    assert main([*words, "--print-trtexec"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == len(PIECES) and all("--onnx=" in line for line in commands)
    assert not (bundle.folder / "engines").exists()
    assert main(["build", str(bundle.folder), "--target", "ort-cpu"]) == 0


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
