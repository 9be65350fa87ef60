"""Scaling by what layers read: it changes nothing by itself, and outliers lose less by it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from mimo_edge.engines import recipe
from mimo_edge.engines.calibration import Calibration
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.engines.quantized_graph import ROUNDED, Rounding, matrices, quantize_graph
from mimo_edge.engines.quantized_piece import Plan, scaled
from mimo_edge.engines.schemes import SCHEMES, dequantize, quantize
from mimo_edge.engines.weight_file import WeightFile, is_external, map_tensor
from mimo_edge.engines.work import Work, scaling_of
from mimo_edge.export import exporter
from mimo_edge.export.costs import export_costs, writing_of
from mimo_edge.export.sources import Sources
from mimo_edge.export.traced import traced_piece
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import CalibrationError
from mimo_edge.runtime.bundle.manifest import PIECES
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio

from tests.bundles import exported
from tests.engines.outliers import divergence, observed, plant, texts
from tests.engines.test_quantize import feed_of
from tests.engines.wild import wild
from tests.golden import Golden

RECIPE = """
name = "{name}"
about = "every layer alike"
[components.{component}]
weights = {{ scheme = "{scheme}", block = {block}, method = "{method}" }}
activations = "{activations}"
"""


@pytest.fixture(scope="module")
def bundle(golden: Golden) -> Bundle:
    return Bundle.open(exported(golden, golden.lm_names[0]))


@pytest.fixture(scope="module")
def known(bundle: Bundle) -> Calibration:
    return wild(bundle)


def made(
    tmp_path: Path, component: str, method: str, scheme: str = "int4", activations: str = "float"
) -> recipe.Recipe:
    block = '"channel"' if scheme != "int4" else "32"
    path = tmp_path / f"{method}.toml"
    values = {"name": method, "component": component, "method": method, "block": block}
    path.write_text(RECIPE.format(scheme=scheme, activations=activations, **values))
    return recipe.load(str(path))


def everything(tmp_path: Path) -> recipe.Recipe:
    """Every layer that can be scaled is."""
    base = made(tmp_path, "backbone", "awq", "int8")
    weights = base.components["backbone"].weights
    parts = {
        name: part if name == "codebooks" else replace(part, weights=weights)
        for name, part in base.components.items()
    }
    return replace(base, components=parts)


@pytest.mark.parametrize("piece", [p for p in PIECES if p != "mel"])
def test_scaling_alone_changes_no_bit(
    bundle: Bundle, known: Calibration, tmp_path: Path, piece: str
) -> None:
    """The factors without the codes: norms, biases and layers change, and what comes out does
    not."""
    model = onnx.load(bundle.path(piece), load_external_data=False)
    data = bundle.folder / bundle.piece(piece).data
    floats = {t.name: map_tensor(t, data) for t in model.graph.initializer if is_external(t)}
    plan = Plan.of(model, everything(tmp_path)).calibrated(
        known,
        lambda name: lambda start, stop: np.ascontiguousarray(floats[name][:, start:stop].T),
        bundle.model.head_dim,
    )
    changed = set()
    models = []
    for scaling in (False, True):
        new = onnx.ModelProto()
        new.CopyFrom(model)
        for tensor in new.graph.initializer:
            if tensor.name not in floats:
                continue
            values = np.array(floats[tensor.name])
            if scaling and tensor.name in plan.scaling.factors:
                changed.add(tensor.name)
                if values.ndim == 1:
                    values = scaled(plan, tensor.name, values)
                else:
                    factors = plan.scaling.factors[tensor.name]
                    values = factors.rows(0, values.shape[1], values.T).T
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
        models.append(new.SerializeToString())
    sessions = [ort.InferenceSession(m) for m in models]
    feed = feed_of(sessions[0])
    for name, values in feed.items():
        if "value" in name:  # those of a scaled cache would be scaled, too
            values[:] = 0
    outputs = [
        dict(zip([o.name for o in s.get_outputs()], s.run(None, feed), strict=True))
        for s in sessions
    ]
    for name, wanted in outputs[0].items():
        if "value" not in name:  # a cache holds values as they are scaled
            np.testing.assert_array_equal(outputs[1][name], wanted)
    ends = {name.removesuffix(".weight").rpartition(".")[2] for name in changed}
    assert ends >= {"q_proj", "k_proj", "v_proj"}
    if piece in ("backbone", "patch_decoder", "patch_encoder"):
        assert ends >= {"o_proj", "up_proj", "down_proj", "gate_proj", "input_layernorm"}
        assert ends >= {"post_attention_layernorm"}
    else:
        assert ends >= {"out_proj", "fc1", "self_attn_layer_norm", "final_layer_norm"}
    if piece == "backbone":
        assert "backbone.lm_head.weight" in changed
    if piece == "patch_decoder":
        assert "patch_decoder.local_transformer_lm_heads.7.weight" in changed


@pytest.mark.parametrize(
    ("spared", "kept"),
    [
        ("backbone.model.layers.0.self_attn.q_proj.weight", ("input_layernorm", "k_proj")),
        ("backbone.model.layers.0.mlp.up_proj.weight", ("post_attention", "mlp.down", "mlp.gate")),
        ("backbone.lm_head.weight", ("backbone.model.norm", "hidden_states_downcast")),
    ],
)
def test_nothing_is_scaled_beside_a_layer_in_floats(
    bundle: Bundle, known: Calibration, tmp_path: Path, spared: str, kept: tuple[str, ...]
) -> None:
    """It reads the same tensor, or makes it, and is written as it is."""
    chosen = replace(everything(tmp_path), exceptions=((spared, recipe.Weights()),))
    model = onnx.load(bundle.path("backbone"), load_external_data=False)
    data = bundle.path("backbone").with_suffix(".onnx.data")
    floats = {t.name: map_tensor(t, data) for t in model.graph.initializer if is_external(t)}
    plan = Plan.of(model, chosen).calibrated(
        known,
        lambda name: lambda start, stop: np.ascontiguousarray(floats[name][:, start:stop].T),
        bundle.model.head_dim,
    )
    first = [n for n in plan.scaling.factors if ".layers." not in n or ".layers.0." in n]
    assert spared not in first and not [n for n in first if any(part in n for part in kept)]
    assert any(".layers.1." in n for n in plan.scaling.factors)


@pytest.fixture(scope="module")
def outliers(
    golden: Golden, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, Calibration]:
    """A model of which two channels in each norm are 30 times as large, and what it read."""
    source = exported(golden, golden.lm_names[0])
    bundle = plant(source, tmp_path_factory.mktemp("outliers"), 2, 30)
    return bundle, observed(bundle, texts(bundle.model, 4, 40, seed=1))


def lost(
    outliers: tuple[Bundle, Calibration],
    methods: tuple[str, ...],
    tmp_path: Path,
    *form: str,
) -> dict[str, float]:
    """KL of the text choices by method, on sequences that were not observed."""
    bundle, calibration = outliers
    folders = []
    for method in methods:
        chosen, folder = made(tmp_path, "backbone", method, *form), tmp_path / method
        known = calibration if chosen.calibrated else None
        quantize_bundle(bundle, chosen, folder, calibration=known)
        folders.append(folder)
    found = divergence(bundle, folders, texts(bundle.model, 4, 40, seed=2))
    return dict(zip(methods, found, strict=True))


def test_it_beats_plain_rounding_where_channels_stick_out(
    outliers: tuple[Bundle, Calibration], tmp_path: Path
) -> None:
    found = lost(outliers, ("nearest", "search", "awq"), tmp_path)
    assert found["awq"] < 0.6 * min(found["nearest"], found["search"]), found


def test_rounded_activations_gain_by_it_too(
    outliers: tuple[Bundle, Calibration], tmp_path: Path
) -> None:
    found = lost(outliers, ("nearest", "awq"), tmp_path, "int8", "int8")
    assert found["awq"] < 0.5 * found["nearest"], found


@pytest.mark.parametrize(("scheme", "within"), [("int8", 0.05), ("fp8", 0.15)])
def test_inputs_are_rounded_by_what_was_read(
    outliers: tuple[Bundle, Calibration], tmp_path: Path, scheme: str, within: float
) -> None:
    """Every layer reads codes, whose scale just holds the largest number seen; one rounding serves
    all layers that read it."""
    bundle, calibration = outliers
    chosen = made(tmp_path, "backbone", "nearest", scheme, scheme)
    quantize_bundle(bundle, chosen, tmp_path / "new", calibration=calibration)
    graph = onnx.load(tmp_path / "new" / "backbone.onnx", load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    seen, roundings = 0, set()
    for node in graph.node:
        weight = maker.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or not weight.input[0].startswith("backbone.model"):
            continue
        source = maker[node.input[0]]
        assert source.op_type == "DequantizeLinear" and ROUNDED in node.input[0]
        step = onnx.numpy_helper.to_array(stored[source.input[1]])
        largest = calibration.layers[weight.input[0]].largest.max()
        assert step == pytest.approx(largest / SCHEMES[scheme].largest)
        seen, roundings = seen + 1, roundings | {node.input[0]}
    assert seen == 7 * bundle.model.layers and len(roundings) == 4 * bundle.model.layers
    with MimoAudio.open(tmp_path / "new") as model:
        said = model.tts("Hello.", options=Options(max_new=3)).result()
    assert said.wav is not None and np.isfinite(said.wav).all()
    session = ort.InferenceSession(str(tmp_path / "new" / "backbone.onnx"))
    own = ort.InferenceSession(str(bundle.path("backbone")))
    feed = feed_of(own)
    wanted, got = (s.run(["logits"], feed)[0] for s in (own, session))
    assert 0 < np.linalg.norm(got - wanted) < 3 * within * np.linalg.norm(wanted)


def test_a_scale_that_is_nothing_or_too_much_is_refused(bundle: Bundle) -> None:
    name = "backbone.model.layers.0.mlp.up_proj.weight"
    for step in (0.0, float("inf"), 1e300):
        model = onnx.load(bundle.path("backbone"), load_external_data=False)
        form = recipe.Form("int8", 0, "nearest")
        with pytest.raises(CalibrationError, match=r"which float32 cannot hold\. Calib"):
            quantize_graph(model, matrices(model), {name: form}, {name: Rounding("int8", step)})


def test_the_search_heeds_what_comes_in() -> None:
    """Of two channels in a block, the one that carries a hundred times as much is stored better."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(64, 32)).astype(np.float32)
    squares = np.where(np.arange(32) % 8 == 0, 100.0, 0.01).astype(np.float32)

    def error(method: str) -> float:
        found = quantize(
            "w", weights.shape, lambda a, b: weights[a:b], SCHEMES["int4"], 32, method,
            squares=squares,
        )  # fmt: skip
        return float(((dequantize(found) - weights) ** 2 @ squares).sum())

    assert error("awq") < 0.9 * error("search")


def test_export_and_quantize_write_the_same(
    golden: Golden, bundle: Bundle, known: Calibration, tmp_path: Path
) -> None:
    """Codes, scales and scaled norms of the piece that has every kind of layer."""
    chosen, piece, lm = everything(tmp_path), "patch_encoder", golden.lm_names[0]
    said: list[tuple[str, int, int]] = []
    quantize_bundle(
        bundle,
        chosen,
        tmp_path / "new",
        calibration=known,
        on_progress=lambda *now: said.append(now),
    )
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)
    assert len({done for what, done, _ in said if what == f"scaling {piece}"}) > 3
    assert len({total for *_, total in said}) == 1 and said[-1][1] == said[-1][2]
    text = golden.folder / "text_tokenizer"
    sources = Sources.open(golden.folder / lm, golden.folder / "audio_tokenizer", text)
    traced = traced_piece(sources.pieces(torch.float32), piece)
    exported = tmp_path / "exported"
    exported.mkdir()
    costs = export_costs(sources, chosen, "fp32", [piece])
    work = Work(costs)
    with WeightFile(exported / f"{piece}.onnx.data") as data:
        exporter._write_piece(sources, data, piece, traced, "fp32", chosen, known, work)
    assert costs[scaling_of(piece)] > 0
    assert work.done == round(costs[scaling_of(piece)] + costs[writing_of(piece)])
    for name in (f"{piece}.onnx.data", f"{piece}.onnx"):
        assert (exported / name).read_bytes() == (tmp_path / "new" / name).read_bytes()
