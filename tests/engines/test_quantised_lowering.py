"""Quantised bundles as TensorRT gets them: the same numbers as stored, and every recipe builds."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorrt_rtx
from mimo_edge.engines.builder import build
from mimo_edge.engines.components import Matrix
from mimo_edge.engines.lowered_tables import pack_tables
from mimo_edge.engines.lowering import lower
from mimo_edge.engines.profiles import profiles
from mimo_edge.engines.quantized_graph import quantize_graph, scales_of
from mimo_edge.engines.recipe import Form
from mimo_edge.engines.runnable import FP8_CAPABILITY
from mimo_edge.engines.schemes import CHANNEL, SCHEMES, pack_int4, quantize
from mimo_edge.engines.target import RTX_CAPABILITIES, Target
from mimo_edge.engines.weight_file import is_external, map_tensor
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import EngineError
from mimo_edge.runtime.bundle.manifest import PIECES
from mimo_edge.scripts.cli import main
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.engines.feeds import CAPACITY, feed_of
from tests.engines.targets import LIMITS, ONE

QUANTISED = ("int8", "int4", "int4-edge", "fp8-weights")
CALIBRATED = ("int8-w8a8", "int4-awq", "fp8")
LANGUAGE = ("patch_encoder", "backbone", "patch_decoder")
TABLES = {"patch_encoder", "patch_decoder"}  # pieces that look rows up
HALF, BFLOAT16 = TensorProto.FLOAT16, TensorProto.BFLOAT16


def capable(form: str) -> Target:
    """All GPUs of TensorRT for RTX that take a form or recipe of this name."""
    oldest = FP8_CAPABILITY if form.startswith("fp8") else 0
    return Target("trt-rtx", tuple(c for c in RTX_CAPABILITIES if float(c) >= oldest))


def stored(bundle: Bundle, piece: str) -> onnx.ModelProto:
    return onnx.load(bundle.path(piece), load_external_data=False)


def outputs(model: onnx.ModelProto, folder: Path) -> list[np.ndarray]:
    """What a graph computes on ONNX Runtime, in float arithmetic; its weights are in `folder`."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    place = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(place, str(folder))
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, feed_of(session))


def widened(bundle: Bundle, piece: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """A bf16 graph in float32, for which ONNX Runtime has kernels; the weights as they are."""
    for tensor in model.graph.initializer:
        if tensor.data_type == BFLOAT16:
            external = is_external(tensor)
            data = bundle.folder / bundle.piece(piece).data
            values = map_tensor(tensor, data) if external else numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "softmax_precision") and attribute.i == BFLOAT16:
                attribute.i = TensorProto.FLOAT
            elif attribute.t.data_type == BFLOAT16:
                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(values))
    return model


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, name) for name in ("fp32", "fp16", "bf16")]
    + [(name, "fp16") for name in QUANTISED + CALIBRATED]
    + [("int4-edge", "bf16")],
)
def test_what_is_lowered_computes_what_is_stored(
    quantised: Callable[[str, str], Bundle], name: str, dtype: str
) -> None:
    """Of every piece whose graph is not left as it is."""
    bundle, changed = quantised(name, dtype), set()
    for piece in PIECES:
        graphs = [stored(bundle, piece), lower(stored(bundle, piece), CAPACITY)]
        if graphs[0] == graphs[1]:
            continue
        changed.add(piece)
        if dtype == "bf16":
            graphs = [widened(bundle, piece, graph) for graph in graphs]
        expected, found = (outputs(graph, bundle.folder) for graph in graphs)
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)
    wanted = {"backbone"} | (TABLES if name in QUANTISED + CALIBRATED else set())
    wanted |= {"tokenizer_decoder", "mel_stream"} if dtype == "bf16" else set()
    assert changed == wanted


@pytest.mark.parametrize("piece", PIECES)
def test_bf16_is_near_float32(quantised: Callable[[str, str], Bundle], piece: str) -> None:
    """The bf16 graphs as TensorRT gets them, with their own weights, in arithmetic that is here."""
    half, whole = quantised("bf16", "bf16"), quantised("fp32", "fp32")
    found = outputs(widened(half, piece, lower(stored(half, piece), CAPACITY)), half.folder)
    expected = outputs(stored(whole, piece), whole.folder)
    for one, other in zip(expected, found, strict=True):
        if one.dtype == np.float32:
            assert np.abs(one - other).max() <= 0.03 * np.abs(one).max()
        else:  # codes that are heard, or drawn
            assert np.mean(one == other) > 0.9


def table_graph(rows: int, width: int, rank: int, kind: int) -> tuple[onnx.ModelProto, np.ndarray]:
    """A looked up table as a quantised bundle has it, and its codes: all 256, in every place."""
    random = np.random.default_rng(0)
    codes = random.permutation(np.arange(rows * width) % 256).astype(np.uint8).view(np.int8)
    codes = codes.reshape(rows, width)
    scales = random.uniform(0.1, 1, (rows, 1)).astype(helper.tensor_dtype_to_np_dtype(kind))
    weight = Matrix("table.weight", "text_embedding", rows, width)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [None] * rank)
    found = helper.make_tensor_value_info("found", kind, [None] * rank + [width])
    node = helper.make_node("Gather", [weight.name, "ids"], ["found"])
    floats = TensorProto(name=weight.name, data_type=kind, dims=[rows, width])
    graph = helper.make_graph([node], "table", [ids], [found], [floats])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    quantize_graph(model, {weight.name: weight}, {weight.name: Form("int8", CHANNEL, "nearest")})
    for tensor, values in zip(model.graph.initializer, (codes, scales), strict=True):
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert [t.name for t in model.graph.initializer] == [weight.name, scales_of(weight.name)]
    return model, codes


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, HALF, BFLOAT16])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4)])
def test_every_code_of_a_table_comes_back(shape: tuple[int, ...], kind: int) -> None:
    model, codes = table_graph(64, 24, len(shape), kind)
    ids = np.random.default_rng(1).integers(0, 64, shape)
    scales = numpy_helper.to_array(model.graph.initializer[1])
    pack_tables(model)
    onnx.checker.check_model(model, full_check=True)
    if kind == BFLOAT16:  # of which ONNX Runtime has no kernels
        (found,) = ReferenceEvaluator(model).run(None, {"ids": ids})
    else:
        (found,) = ort.InferenceSession(model.SerializeToString()).run(None, {"ids": ids})
    assert found.dtype == scales.dtype
    np.testing.assert_array_equal(found, codes[ids].astype(scales.dtype) * scales[ids])


def test_a_table_of_all_rows() -> None:
    """Every code in every place of a word, beside every other kind of neighbour."""
    model, codes = table_graph(1024, 64, 1, TensorProto.FLOAT)
    assert all(len(set(codes[:, place::4].flat)) == 256 for place in range(4))
    scales = numpy_helper.to_array(model.graph.initializer[1])
    pack_tables(model)
    (found,) = ort.InferenceSession(model.SerializeToString()).run(None, {"ids": np.arange(1024)})
    np.testing.assert_array_equal(found, codes.astype(np.float32) * scales)


def test_rows_that_are_no_whole_words() -> None:
    model, _ = table_graph(8, 6, 1, TensorProto.FLOAT)
    with pytest.raises(EngineError, match=r"table\.weight has rows of 6.*by an exception"):
        pack_tables(model)


def check_builds(bundle: Bundle, name: str, pieces: Iterable[str]) -> None:
    """For all GPUs that take the recipe's forms, without a warning."""
    for piece in pieces:
        ranges = profiles(bundle, piece, LIMITS)
        path, target = bundle.path(piece), capable(name)
        made = build(tensorrt_rtx, target, path, ranges, LIMITS.max_seq, strict=True)
        assert made.plan and not made.log.warnings


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("int4-edge", PIECES),
        ("int8", LANGUAGE),
        ("int4", ("patch_encoder", "backbone")),  # the rest is as in int8
        ("fp8-weights", LANGUAGE),
        ("int4-awq", ("patch_encoder", "backbone")),
        ("int8-w8a8", LANGUAGE),  # the codec is as in int8
        ("fp8", LANGUAGE),
    ],
)
def test_every_recipe_builds_for_every_gpu(
    quantised: Callable[[str, str], Bundle], name: str, pieces: tuple[str, ...]
) -> None:
    """All pieces of the recipe that has most forms, and of the others those that differ most."""
    check_builds(quantised(name, "fp16"), name, pieces)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "fp8-weights"])
def test_what_is_left_of_every_recipe_builds(
    quantised: Callable[[str, str], Bundle], name: str
) -> None:
    check_builds(quantised(name, "fp16"), name, [p for p in PIECES if p not in LANGUAGE])


def layer_graph(scheme: str, block: int, rounded: bool) -> onnx.ModelProto:
    """One layer as a quantised bundle has it; `rounded` if what it reads is rounded alike."""
    inputs, channels = 512, 1024
    weight = Matrix("layer.weight", "backbone", channels, inputs)
    x = helper.make_tensor_value_info("x", HALF, [1, inputs])
    y = helper.make_tensor_value_info("y", HALF, [1, channels])
    node = helper.make_node("MatMul", ["x", weight.name], ["y"])
    floats = TensorProto(name=weight.name, data_type=HALF, dims=[inputs, channels])
    graph = helper.make_graph([node], "layer", [x], [y], [floats])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    form = Form(scheme, block, "nearest")
    quantize_graph(model, {weight.name: weight}, {weight.name: form})
    values = np.random.default_rng(0).normal(size=(channels, inputs)).astype(np.float32)
    read, how = lambda start, stop: values[start:stop], SCHEMES[scheme]
    made = quantize(weight.name, values.shape, read, how, block, form.method, np.float16)
    codes, scales = model.graph.initializer
    flat = np.ascontiguousarray(made.codes.T)
    codes.raw_data = pack_int4(flat).tobytes() if scheme == "int4" else flat.tobytes()
    scales.raw_data = np.ascontiguousarray(made.scales.T).tobytes()
    if rounded:
        zero = TensorProto(name="zero", data_type=codes.data_type, raw_data=bytes(1))
        model.graph.initializer.extend([numpy_helper.from_array(np.float16(0.02), "step"), zero])
        for place, (kind, output) in enumerate(
            [("QuantizeLinear", "whole"), ("DequantizeLinear", "near")]
        ):
            read_from = "x" if kind == "QuantizeLinear" else "whole"
            rounding = helper.make_node(kind, [read_from, "step", "zero"], [output])
            model.graph.node.insert(place, rounding)
        model.graph.node[-1].input[0] = "near"
    return model


@pytest.mark.parametrize(
    ("scheme", "block", "rounded"),
    [
        ("int4", 32, False),
        ("int4", 128, False),
        ("int8", CHANNEL, False),
        ("int8", CHANNEL, True),
        ("fp8", CHANNEL, False),
        ("fp8", CHANNEL, True),
    ],
)
def test_a_layer_keeps_its_size(tmp_path: Path, scheme: str, block: int, rounded: bool) -> None:
    """For every GPU that takes the form, also where what it reads is rounded."""
    model = layer_graph(scheme, block, rounded)
    onnx.save(model, tmp_path / "layer.onnx")
    held = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    plan = build(tensorrt_rtx, capable(scheme), tmp_path / "layer.onnx", [{}], 16, strict=True).plan
    assert held < len(plan) < held + 300_000 < 2 * 512 * 1024, "not the size of fp16"


def test_a_table_keeps_its_size(tmp_path: Path) -> None:
    model, codes = table_graph(2048, 512, 1, HALF)
    onnx.save(model, tmp_path / "table.onnx")
    ranges = {"ids": ((1,), (1,), (8,))}
    plan = build(tensorrt_rtx, ONE, tmp_path / "table.onnx", [ranges], 16).plan
    assert codes.nbytes < len(plan) < 1.4 * codes.nbytes


@pytest.mark.parametrize(
    ("name", "target", "says"),
    [
        ("fp8-weights", "trt-rtx:8.6,8.9", r"capability 8\.6 cannot multiply.*recipe int8, int4"),
        ("one-in-fp8", "trt-rtx:8.0,8.6", r"capability 8\.0, 8\.6 cannot"),
        ("int8-blocks", "trt-rtx:8.9", r"patch_decoder \(int8/32\)\. Quantise those by channel"),
        ("int8-blocks", "trt", "int8 weights in blocks"),
    ],
)
def test_what_a_target_cannot_run_is_refused(
    quantised: Callable[[str, str], Bundle],
    capsys: pytest.CaptureFixture[str],
    name: str,
    target: str,
    says: str,
) -> None:
    words = ["build", str(quantised(name, "fp16").folder), "--target", target, "--dry-run"]
    assert main(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(says, said), said


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.FLOAT8E4M3FN])
def test_a_cache_of_few_bits_is_refused(tmp_path: Path, kind: int) -> None:
    """Why recipes have no form of the key-value cache. If this fails with another TensorRT, they
    may have one."""

    def info(name: str, dtype: int, time: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, [1, 2, time, 64])

    nodes = [
        helper.make_node("QuantizeLinear", ["new", "scale", "zero"], ["codes"]),
        helper.make_node("TensorScatter", ["past", "codes", "at"], ["present"], axis=2),
        helper.make_node("DequantizeLinear", ["present", "scale", "zero"], ["keys"]),
        helper.make_node("Attention", ["query", "keys", "keys"], ["y"]),
    ]
    at = helper.make_tensor_value_info("at", TensorProto.INT64, [1])
    inputs = [info("query", HALF, 1), info("new", HALF, 1), info("past", kind, 16), at]
    constants = [
        numpy_helper.from_array(np.float16(0.1), "scale"),
        TensorProto(name="zero", data_type=kind, raw_data=bytes(1)),
    ]
    sides = inputs, [info("y", HALF, 1), info("present", kind, 16)]
    graph = helper.make_graph(nodes, "cache", *sides, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    onnx.save(model, tmp_path / "cache.onnx")
    with pytest.raises(EngineError, match="must have type Float, Half, or BFloat16"):
        build(tensorrt_rtx, ONE, tmp_path / "cache.onnx", [{}], 16)
