"""Products of many rows in whole numbers: what they give, row by row, and who has them."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.components import MANY_ROWS
from mimo_edge.engines.ort import build as building
from mimo_edge.engines.ort.build import build_bundle, lower
from mimo_edge.engines.ort.prepack import ENTRY, PACKED
from mimo_edge.engines.ort.products import layers, lower_products
from mimo_edge.engines.ort.rows import row_products, sums_exactly
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.engines.schemes import pack_int4
from mimo_edge.engines.weight_file import Stored, WeightFile, point_to
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.processor import processor
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.bundles import exported
from tests.golden import Golden

WIDTH = 64  # K
Weights = dict[str, NDArray[np.float32]]  # layer -> what its codes stand for [K, N]
# layer -> bits, block (0: a scale a channel), outputs, whether it has a bias
FORMS = {
    "q": (4, 32, 48, True),
    "k": (8, 0, 33, False),
    "v": (8, 32, 16, True),
    "o": (4, 64, 7, True),
}


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, Path, Weights]:
    """A graph of products that read the same rows, stored in all forms; its data; its weights."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("layers")
    stored, tensors, nodes, weights = [], [], [], {}
    for name, (bits, block, outputs, biased) in FORMS.items():
        most = 7 if bits == 4 else 127
        codes = rng.integers(-most, most + 1, (WIDTH, outputs), dtype=np.int8)
        blocks = WIDTH // (block or WIDTH)
        scales = rng.uniform(0.5, 2.0, (blocks, outputs)).astype(np.float32) / most
        weights[name] = (codes.reshape(blocks, -1, outputs) * scales[:, None]).reshape(codes.shape)
        scales = scales if block else scales[0]
        kind = TensorProto.INT4 if bits == 4 else TensorProto.INT8
        stored += [
            Stored(f"{name}.weight", [pack_int4(codes) if bits == 4 else codes]),
            Stored(f"{name}.scales", [scales]),
        ]
        shape = list(codes.shape)
        tensors += [
            TensorProto(name=f"{name}.weight", data_type=kind, dims=shape),
            TensorProto(name=f"{name}.scales", data_type=TensorProto.FLOAT, dims=scales.shape),
        ]
        axis = {"axis": 0, "block_size": block} if block else {"axis": 1}
        inputs, floats = [f"{name}.weight", f"{name}.scales"], f"{name}.floats"
        nodes.append(helper.make_node("DequantizeLinear", inputs, [floats], **axis))
        product = f"{name}.product" if biased else name
        nodes.append(helper.make_node("MatMul", ["x", floats], [product]))
        if biased:
            bias = rng.standard_normal(outputs).astype(np.float32)
            stored.append(Stored(f"{name}.bias", [bias]))
            tensors.append(
                TensorProto(name=f"{name}.bias", data_type=TensorProto.FLOAT, dims=[outputs])
            )
            nodes.append(helper.make_node("Add", [product, f"{name}.bias"], [name]))
    data = folder / "graph.onnx.data"
    with WeightFile(data) as file:
        places = file.write(stored)
    sizes = {name: form[2] for name, form in FORMS.items()}
    value, floats32 = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", floats32, ["batch", "rows", WIDTH])],
        [value(name, floats32, ["batch", "rows", size]) for name, size in sizes.items()],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    point_to(model, data.name, places)
    return model, data, weights


@pytest.fixture(scope="module")
def session(
    layered: tuple[onnx.ModelProto, Path, Weights], tmp_path_factory: pytest.TempPathFactory
) -> ort.InferenceSession:
    """The same, lowered."""
    source, data, _ = layered
    model, before = onnx.ModelProto(), {t.name: t for t in source.graph.initializer}
    model.CopyFrom(source)
    found = row_products(layers(model))
    assert len(found) == 1, "all read the same"
    lower_products(model, found)
    path = tmp_path_factory.mktemp("lowered") / "graph.onnx"
    parts = found[0].stored(before, data)
    with WeightFile(path.with_suffix(".data")) as file:
        places = file.write(Stored(name, arrays) for name, arrays in parts.items())
    point_to(model, "graph.data", places)
    onnx.save(model, path)
    options = ort.SessionOptions()
    # exact sums on any processor
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(str(path), options)


def run(session: ort.InferenceSession, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return dict(zip(FORMS, session.run(list(FORMS), {"x": x}), strict=True))


def rows(count: int) -> NDArray[np.float32]:
    """[1, count, K]: each row of another size."""
    rng = np.random.default_rng(count)
    sizes = 10.0 ** rng.uniform(-6, 6, (1, count, 1))
    return (rng.standard_normal((1, count, WIDTH)) * sizes).astype(np.float32)


def test_as_close_as_rounding_allows(
    layered: tuple[onnx.ModelProto, Path, Weights], session: ort.InferenceSession
) -> None:
    """Half a step of a row's numbers, and half a step of a channel's where blocks were rounded
    again; a channel of int8 is taken as it is."""
    model, data, weights = layered
    x = rows(19)
    exact = ort.InferenceSession(_saved(model, data)).run(list(FORMS), {"x": x})
    steps = np.abs(x).max(axis=-1, keepdims=True) / 127
    for (name, found), wanted in zip(run(session, x).items(), exact, strict=True):
        weight, (_, block, *_) = np.abs(weights[name]), FORMS[name]
        channel = weight.max(axis=0) / 127 if block else np.zeros(weight.shape[1])
        of_rows = steps / 2 * (weight + channel / 2).sum(axis=0)
        of_weights = np.abs(x).sum(axis=-1, keepdims=True) * channel / 2
        bound = (of_rows + of_weights) * 1.001 + 1e-5
        assert (np.abs(found - wanted) <= bound).all(), name
        assert np.abs(found - wanted).max() > 0, "nothing was rounded"


def _saved(model: onnx.ModelProto, data: Path) -> str:
    path = data.with_name("graph.onnx")
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize("count", [1, 2, 5, 48])
def test_a_row_gets_what_it_gets_alone(session: ort.InferenceSession, count: int) -> None:
    """Bit for bit, whatever the others are."""
    x = rows(48)
    together = run(session, x)
    for start in range(0, 48 - count + 1, count):
        for name, part in run(session, x[:, start : start + count]).items():
            np.testing.assert_array_equal(part, together[name][:, start : start + count])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 17, WIDTH - 1])
def test_what_is_not_a_number_comes_through(
    session: ort.InferenceSession, value: float, place: int
) -> None:
    """In its own row alone, wherever in it."""
    x = rows(6)
    before = run(session, x)
    x[0, 3, place] = value
    for name, found in run(session, x).items():
        assert not np.isfinite(found[0, 3]).any(), name
        others = np.arange(6) != 3
        np.testing.assert_array_equal(found[:, others], before[name][:, others])


def test_nothing_gives_the_bias(session: ort.InferenceSession) -> None:
    found = run(session, np.zeros((2, 3, WIDTH), np.float32))
    assert not found["k"].any()
    assert np.isfinite(found["q"]).all() and (found["q"] == found["q"][0, 0]).all()


def test_processors_that_saturate() -> None:
    assert sums_exactly("x86_64 avx avx2 avx512_vnni avx512f")
    assert sums_exactly("x86_64 avx2 avx_vnni") and sums_exactly("aarch64 asimd asimddp")
    assert not sums_exactly("x86_64 avx avx2 avx512f") and not sums_exactly("arm64")


@pytest.fixture(scope="module")
def quantized(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("edge") / "bundle"
    source = Bundle.open(exported(golden, golden.lm_names[0]))
    quantize_bundle(source, recipe.load("int4-edge"), folder)
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def built(quantized: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(build_bundle(quantized, tmp_path_factory.mktemp("built") / "bundle"))


def test_which_pieces_have_them(
    quantized: Bundle, built: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codec's; and on a processor whose sums saturate none."""
    here = sums_exactly(processor())
    for piece in MANY_ROWS | {"backbone", "patch_decoder"}:
        model = onnx.load(built.path(piece), load_external_data=False)
        products = [n for n in model.graph.node if n.op_type in PACKED]
        whole = here and piece in MANY_ROWS
        kinds = {n.op_type for n in products}
        assert kinds == {"MatMulIntegerToFloat" if whole else "MatMulNBits"}, piece
        packed = {
            t.name for t in model.graph.initializer for e in t.external_data if e.key == ENTRY
        }
        assert packed == {n.input[1] for n in products}, piece
    monkeypatch.setattr(building, "processor", lambda: "x86_64 avx2")
    model = onnx.load(quantized.path("mel_stream"), load_external_data=False)
    lower(model, quantized, "mel_stream")
    assert "MatMulNBits" in {n.op_type for n in model.graph.node}
    assert "MatMulIntegerToFloat" not in {n.op_type for n in model.graph.node}


def test_sound_is_as_good(quantized: Bundle, built: Bundle, golden: Golden) -> None:
    """Against the model in floats the build loses hardly more than the bundle that it is made of;
    and how its codes arrive makes no more difference than a few steps of rounding."""
    model = quantized.model
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, empty, 32) for empty in model.empty_codes])
    exact = Bundle.open(exported(golden, golden.lm_names[0]))
    whole, streamed = {}, {}
    for name, bundle in (("exact", exact), ("stored", quantized), ("built", built)):
        backend = OrtBackend(bundle)
        whole[name] = codec.decode(backend, codes)
        for chunk in (1, 4, 24):
            stream = codec.open_stream(backend)
            wavs = [stream.push(codes[:, t : t + chunk]) for t in range(0, 32, chunk)]
            streamed[name, chunk] = np.concatenate((*wavs, stream.finish()))
            stream.close()
    for wanted, stored, found in (
        [whole[name] for name in ("exact", "stored", "built")],
        [streamed[name, 4] for name in ("exact", "stored", "built")],
    ):
        assert _snr(wanted, found) > _snr(wanted, stored) - 1.0
    for chunk in (1, 24):
        assert _snr(streamed["built", 4], streamed["built", chunk]) > 40


def _snr(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """dB"""
    noise = float(np.square(wanted - found).sum())
    return float(10 * np.log10(np.square(wanted).sum() / max(noise, 1e-20)))
