"""A quantised bundle: its graphs, what they compute, what is refused and what is left behind."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mimo_edge.engines import quantize as quantizing
from mimo_edge.engines import recipe
from mimo_edge.engines.quantize import bundle_parts, quantize_bundle
from mimo_edge.engines.quantized_graph import matrices, scales_of
from mimo_edge.engines.schemes import SCHEMES, dequantize, quantize
from mimo_edge.engines.weigh import weigh
from mimo_edge.engines.weight_file import is_external, map_tensor
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import RecipeError
from mimo_edge.runtime.bundle.manifest import MANIFEST, PIECES
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.cli import main

from tests.bundles import exported
from tests.engines.feeds import feed_of
from tests.golden import Golden

MIXED = """
name = "mixed"
about = "every scheme and block somewhere"
[default]
weights = { scheme = "int8" }
[components.backbone]
weights = { scheme = "int4", block = 32, method = "search" }
[components.patch_encoder]
weights = { scheme = "int8", block = 64, method = "search" }
[components.tokenizer_encoder]
weights = { scheme = "fp8" }
[components.lm_head]
weights = { scheme = "float" }
[[exceptions]]
tensors = "backbone.model.layers.0.self_attn.*"
weights = { scheme = "fp8" }
"""


@pytest.fixture(scope="session")
def float_bundle(golden: Golden) -> Bundle:
    return Bundle.open(exported(golden, golden.lm_names[0]))


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> recipe.Recipe:
    path = tmp_path_factory.mktemp("recipe") / "mixed.toml"
    path.write_text(MIXED, encoding="utf-8")
    return recipe.load(str(path))


@pytest.fixture(scope="session")
def quantized(
    float_bundle: Bundle, mixed: recipe.Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    folder = tmp_path_factory.mktemp("quantized") / "bundle"
    quantize_bundle(float_bundle, mixed, folder)
    return Bundle.open(folder)


def dequantized(bundle: Bundle, piece: str, chosen: recipe.Recipe) -> onnx.ModelProto:
    """The float graph of a piece, with the numbers that numpy says its recipe leaves."""
    model = onnx.load(bundle.path(piece), load_external_data=False)
    weights = matrices(model)
    for tensor in model.graph.initializer:
        if not is_external(tensor):
            continue
        values = map_tensor(tensor, bundle.folder / bundle.piece(piece).data)
        weight = weights.get(tensor.name)
        form = weight and chosen.form(weight)
        if weight and form:
            rows = values if weight.table else values.T
            found = quantize(
                tensor.name,
                rows.shape,
                lambda start, stop, rows=rows: np.ascontiguousarray(rows[start:stop]),
                SCHEMES[form.scheme],
                form.block,
                form.method,
            )
            near = dequantize(found)
            values = near if weight.table else near.T
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    return model


@pytest.mark.parametrize("piece", PIECES)
def test_what_is_computed_is_what_the_dequantised_weights_give(
    float_bundle: Bundle, quantized: Bundle, mixed: recipe.Recipe, piece: str
) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    expected = dequantized(float_bundle, piece, mixed).SerializeToString()
    sessions = [ort.InferenceSession(m, options) for m in (expected, str(quantized.path(piece)))]
    feed = feed_of(sessions[0])
    outputs = [session.run(None, feed) for session in sessions]
    for wanted, found in zip(*outputs, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5 * max(1, np.abs(wanted).max()))


def test_every_matrix_is_stored_as_the_recipe_says(
    float_bundle: Bundle, quantized: Bundle, mixed: recipe.Recipe
) -> None:
    seen = set()
    for piece in PIECES:
        weights = matrices(onnx.load(float_bundle.path(piece), load_external_data=False))
        model = onnx.load(quantized.path(piece), load_external_data=False)
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        for name, weight in weights.items():
            form = mixed.form(weight)
            kind = onnx.TensorProto.DataType.Name(stored[name].data_type)
            wanted = {"int4": "INT4", "int8": "INT8", "fp8": "FLOAT8E4M3FN"}
            assert kind == (wanted[form.scheme] if form else "FLOAT"), name
            assert (scales_of(name) in stored) == (form is not None)
            seen.add((weight.component, kind))
        for tensor in model.graph.initializer:  # what is no matrix is as it was
            if is_external(tensor) and tensor.name not in weights and "_scales" not in tensor.name:
                before = onnx.load(float_bundle.path(piece), load_external_data=False)
                old = next(t for t in before.graph.initializer if t.name == tensor.name)
                np.testing.assert_array_equal(
                    map_tensor(tensor, quantized.folder / quantized.piece(piece).data),
                    map_tensor(old, float_bundle.folder / float_bundle.piece(piece).data),
                )
    assert {kind for _, kind in seen} == {"INT4", "INT8", "FLOAT8E4M3FN", "FLOAT"}
    assert ("text_embedding", "INT8") in seen and ("speech_heads", "INT8") in seen


def test_a_quantised_bundle_weighs_what_was_foretold(
    float_bundle: Bundle, quantized: Bundle, mixed: recipe.Recipe
) -> None:
    foretold = sum(share.bytes for share in weigh(mixed, bundle_parts(float_bundle), "fp32"))
    held = {}
    for piece in PIECES:
        for tensor in onnx.load(quantized.path(piece), load_external_data=False).graph.initializer:
            if is_external(tensor) and piece != "mel" and not tensor.name.startswith("inverse."):
                entries = {entry.key: entry.value for entry in tensor.external_data}
                held[entries["location"], entries["offset"]] = int(entries["length"])
    constants = sum(held.values()) - foretold
    assert 0 <= constants < 1e5  # windows and the like, which belong to no component


def test_it_speaks(quantized: Bundle) -> None:
    with MimoAudio.open(quantized.folder) as model:
        said = model.tts("Hello.", options=Options(max_new=3)).result()
    assert said.wav is not None and np.isfinite(said.wav).all()


def test_floats_are_no_recipe_for_it(float_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"quantises nothing.*--recipe fp32"):
        quantize_bundle(float_bundle, recipe.load("fp32"), tmp_path / "new")


def test_what_is_quantised_is_not_quantised_again(
    quantized: Bundle, mixed: recipe.Recipe, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="is quantised already"):
        quantize_bundle(quantized, mixed, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resume", [False, True])
def test_a_failure_leaves_nothing_or_what_the_next_goes_on_with(
    float_bundle: Bundle,
    mixed: recipe.Recipe,
    quantized: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resume: bool,
) -> None:
    real, made = quantizing._quantize_piece, []

    def failing(bundle: Bundle, recipe: object, piece: str, *rest: object) -> object:
        if piece == "patch_decoder":
            raise KeyboardInterrupt
        made.append(piece)
        return real(bundle, recipe, piece, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(quantizing, "_quantize_piece", failing)
    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(float_bundle, mixed, tmp_path / "new", resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == (["new.partial"] if resume else [])
    monkeypatch.setattr(
        quantizing, "_quantize_piece", lambda b, c, p, *r: made.append(p) or real(b, c, p, *r)
    )
    heard: list[tuple[str, int, int]] = []
    quantize_bundle(
        float_bundle,
        mixed,
        tmp_path / "new",
        resume=resume,
        on_progress=lambda *said: heard.append(said),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    kept = [said for said in heard if said[0].startswith("kept ")]
    assert bool(kept) == resume and all(done == 0 for _, done, _ in kept)
    worked = heard[len(kept) :]
    assert len({total for _, _, total in worked}) == 1
    assert [done for _, done, _ in worked] == sorted(done for _, done, _ in worked)
    assert worked[-2][1] == pytest.approx(worked[-1][2], rel=1e-6), "all of it, before the end"
    assert made.count("backbone") == (1 if resume else 2)
    names = {path.name for path in quantized.folder.iterdir()}
    assert names == {path.name for path in (tmp_path / "new").iterdir()}
    for name in names - {MANIFEST}:
        assert (tmp_path / "new" / name).read_bytes() == (quantized.folder / name).read_bytes()


def test_another_recipe_does_not_go_on_with_it(
    float_bundle: Bundle, mixed: recipe.Recipe, tmp_path: Path
) -> None:
    quantize_bundle(float_bundle, mixed, tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "new.partial")
    (tmp_path / "new.partial" / "unfinished").touch()
    quantize_bundle(float_bundle, recipe.load("int8"), tmp_path / "new", resume=True, force=True)
    model = onnx.load(tmp_path / "new" / "backbone.onnx", load_external_data=False)
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds and onnx.TensorProto.INT4 not in kinds


def test_weights_that_are_nan_are_refused(
    bundle_copy: Callable[..., Bundle], golden: Golden, mixed: recipe.Recipe, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundle_copy(golden.lm_names[0]).folder, tmp_path / "bundle"))
    bundle = Bundle.open(folder)
    model = onnx.load(bundle.path("backbone"), load_external_data=False)
    name = "backbone.model.layers.1.mlp.up_proj.weight"
    tensor = next(t for t in model.graph.initializer if t.name == name)
    offset = next(int(e.value) for e in tensor.external_data if e.key == "offset")
    with (folder / "backbone.onnx.data").open("r+b") as file:
        file.seek(offset + 400)
        file.write(np.float32(np.nan).tobytes())
    code = main(["quantize", str(folder), "--recipe", "int8", "-o", str(tmp_path / "new")])
    assert code == 2  # it was altered
    altered = Bundle.open(folder, verify=False)
    with pytest.raises(ValueError, match=f"{name} holds weights that are NaN or infinite"):
        quantize_bundle(altered, mixed, tmp_path / "new")
    assert not (tmp_path / "new.partial").exists()


def test_command(float_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", str(float_bundle.folder), "--recipe", "int8", "-o", str(tmp_path / "new")]
    assert main(words) == 0
    done = capsys.readouterr()
    assert "int8" in done.out and "quantising backbone" in done.err
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err
