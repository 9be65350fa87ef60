"""The graphs that TensorRT gets compute what the goldens say: on ONNX Runtime CPU, in float32.

Two rows at unequal positions, prefilled in chunks: there a mask that looks one position too far, or
that takes positions from the wrong end, gives other numbers. That the test would see it is tested.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mimo_edge.engines.lowering import lower, widen_transposed_convolutions
from mimo_edge.parity import tolerances
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.generation.request import split_grid
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests import check
from tests.golden import Golden

CAPACITY = 64


def lowered(bundle: Bundle, piece: str) -> onnx.ModelProto:
    return lower(onnx.load(bundle.path(piece), load_external_data=False), CAPACITY)


def session(model: onnx.ModelProto, bundle: Bundle) -> ort.InferenceSession:
    """The graph, with its weights where they are: in the bundle."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    path = bundle.folder / "lowered.onnx"
    path.write_bytes(model.SerializeToString())
    return ort.InferenceSession(path, options)


def run(backbone: ort.InferenceSession, *inputs: np.ndarray) -> list[np.ndarray]:
    names = [port.name for port in backbone.get_inputs()]
    return backbone.run(None, dict(zip(names, inputs, strict=True)))


def empty_caches(bundle: Bundle, rows: int) -> list[np.ndarray]:
    model = bundle.model
    shape = (rows, model.kv_heads, CAPACITY, model.head_dim)
    return [np.full(shape, 1.0, np.float32) for _ in range(2 * model.layers)]  # no query sees it


def unequal_rows(golden: Golden, lm: str, bundle: Bundle, model: onnx.ModelProto) -> float:
    """The largest difference from the goldens: rows of unequal chunks, then single steps."""
    arrays = golden.npz(f"{lm}.forward.npz")
    embeddings = arrays["prefill.inputs_embeds"][0]  # [P, D]
    patches, backbone = len(embeddings), session(model, bundle)
    caches, past, worst = empty_caches(bundle, 2), np.zeros(2, np.int64), 0.0
    chunks = [[7, 3], [patches - 9, 2], [2, 6]]
    assert sum(c[0] for c in chunks) == patches and sum(c[1] for c in chunks) < patches
    for counts in chunks:
        new = np.array(counts)
        batch = np.zeros((2, new.max(), embeddings.shape[1]), np.float32)
        for row in range(2):
            batch[row, : new[row]] = embeddings[past[row] : past[row] + new[row]]
        local_hidden, logits, *caches = run(backbone, batch, past, new, *caches)
        past = past + new
        for row in range(2):
            expected = arrays["full.local_hidden"][0, past[row] - 1]
            worst = max(worst, tolerances.difference(local_hidden[row], expected))
    worst = max(worst, tolerances.difference(logits[:1, None], arrays["prefill.text_logits"]))

    layers = bundle.model.layers
    for layer in range(layers):
        for kind, offset in (("k", 0), ("v", layers)):
            expected = arrays.get(f"prefill.{kind}_layer{layer}")
            if expected is not None:
                kept = caches[offset + layer][:1, :, :patches]
                worst = max(worst, tolerances.difference(kept, expected))

    steps = len([n for n in arrays if n.startswith("step") and n.endswith(".hidden")])
    for step in range(steps):  # the first row goes on, the second is still in the prompt
        batch = np.stack((arrays[f"step{step}.inputs_embeds"][0], embeddings[past[1]][None]))
        local_hidden, logits, *caches = run(backbone, batch, past, np.ones(2, np.int64), *caches)
        past = past + 1
        for actual, expected in (
            (local_hidden[:1, None], arrays[f"step{step}.local_hidden"]),
            (logits[:1, None], arrays[f"step{step}.text_logits"]),
            (local_hidden[1], arrays["full.local_hidden"][0, past[1] - 1]),
        ):
            worst = max(worst, tolerances.difference(actual, expected))
    return worst


def test_backbone(golden: Golden, bundle_copy: Callable[..., Bundle], lm_name: str) -> None:
    bundle = bundle_copy(lm_name)
    worst = unequal_rows(golden, lm_name, bundle, lowered(bundle, "backbone"))
    assert worst <= tolerances.LM.absolute


def without_mask(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.input[3:]


def upper_left_causal(model: onnx.ModelProto) -> None:
    """What TensorRT makes of `is_causal` with a cache: query 0 sees key 0 only."""
    without_mask(model)
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(helper.make_attribute("is_causal", 1))


def one_too_far(model: onnx.ModelProto) -> None:
    """Queries see one position more than they may: `<=` for `<`, or the other way around."""
    swapped = {"LessOrEqual": "Less", "GreaterOrEqual": "Greater"}
    swapped |= {new: old for old, new in swapped.items()}
    node = next(n for n in model.graph.node if n.op_type in swapped)
    node.op_type = swapped[node.op_type]


def other_rows_positions(model: onnx.ModelProto) -> None:
    """Both rows write their keys where the first row is."""
    for name in ("first", "axis"):
        value = numpy_helper.from_array(np.array([0], np.int64), name)
        model.graph.initializer.append(value)
    shape = helper.make_node("Shape", ["past_lengths"], ["rows"])
    first = helper.make_node("Gather", ["past_lengths", "first"], ["first_length"])
    spread = helper.make_node("Expand", ["first_length", "rows"], ["spread_lengths"])
    for node in model.graph.node:
        if node.op_type == "TensorScatter":
            node.input[2] = "spread_lengths"
    for node in (spread, first, shape):
        model.graph.node.insert(0, node)


@pytest.mark.parametrize(
    "break_it", [without_mask, upper_left_causal, one_too_far, other_rows_positions]
)
def test_a_wrong_mask_cannot_hide(
    golden: Golden,
    bundle_copy: Callable[..., Bundle],
    break_it: Callable[[onnx.ModelProto], None],
) -> None:
    lm = golden.lm_names[0]
    bundle = bundle_copy(lm)
    model = lowered(bundle, "backbone")
    break_it(model)
    assert unequal_rows(golden, lm, bundle, model) > 10 * tolerances.LM.absolute


def test_patch_encoder(golden: Golden, bundle_copy: Callable[..., Bundle], lm_name: str) -> None:
    bundle, arrays = bundle_copy(lm_name), golden.npz(f"{lm_name}.forward.npz")
    patches = int(arrays["prefill_groups"])
    text, codes = split_grid(arrays["ids"], bundle.model.group_size)
    feed = {"text_ids": text[None, :patches], "codes": codes[None, :patches]}
    embeddings = session(lowered(bundle, "patch_encoder"), bundle).run(None, feed)[0]
    check.close(embeddings, arrays["prefill.inputs_embeds"], tolerances.LM, "inputs_embeds")


def test_widened_transposed_convolution() -> None:
    """In bf16, where ONNX Runtime has no kernels: against float32 by ONNX's reference evaluator."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 4, 9)).astype(ml_dtypes.bfloat16)
    weight = random.normal(size=(4, 3, 3)).astype(ml_dtypes.bfloat16)
    bias = random.normal(size=3).astype(ml_dtypes.bfloat16)
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], name="up", strides=[2])

    def info(name: str, channels: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1, channels, None])

    stored = [numpy_helper.from_array(a, n) for a, n in ((weight, "w"), (bias, "b"))]
    graph = helper.make_graph([node], "up", [info("x", 4)], [info("y", 3)], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    widen_transposed_convolutions(model)
    onnx.checker.check_model(model, full_check=True)
    assert [n.op_type for n in model.graph.node] == ["Cast"] * 3 + ["ConvTranspose", "Cast"]
    (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    expected = np.zeros((1, 3, 19), np.float32)
    for position in range(9):  # what a transposed convolution is
        for tap in range(3):
            expected[0, :, 2 * position + tap] += np.float32(x[0, :, position]) @ np.float32(
                weight[:, :, tap]
            )
    expected += np.float32(bias)[:, None]
    assert y.dtype == ml_dtypes.bfloat16
    assert (y == expected.astype(ml_dtypes.bfloat16)).mean() > 0.98  # ties may round either way
    assert np.abs(np.float32(y) - expected).max() <= 2**-8 * np.abs(expected).max()
