"""Keys and values of the backbone in int8: a quarter of the memory, and of what a step reads of it.

    code = round(value / scale), scale = (mean + HEADROOM * (largest - mean)) / 127

ONNX Runtime's GroupQueryAttention rounds them as it writes them, by scales that lie in the graph:
one for each channel of each head of each layer, because keys of this family have biases that are
many times as large as what changes from position to position. Mean and largest are of absolute
values that calibration saw; a bias is in both, and needs no room. What is larger becomes the
largest code.

Rotation turns channel i and i + D / 2 of a key into one another, the slow pairs by an angle that
no short calibration comes to. So both have the scale of their pair, whose length no angle changes.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
from mimo_edge.engines.calibration import Calibration, Doubles, Statistics
from mimo_edge.engines.ort.graph import rewrite
from mimo_edge.runtime.bundle.built import INT8, KV_CACHES
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import Manifest, TensorSpec
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
PIECE = "backbone"  # the patch decoder's cache holds eleven positions
LARGEST = 127  # code
# Beyond what calibration saw. docs/performance.md has what other recordings went beyond, and what
# a wider range costs in precision.
HEADROOM = 1.5
# of the largest scale of a head: a channel in which calibration saw nothing must not be cut to it
_LEAST = 1 / 1024
_NAMES = ("past_keys_", "past_values_", "present_keys_", "present_values_")
_WATCHED = "kept_states"


def scales_of(bundle: Bundle, calibration: Calibration) -> dict[str, Floats]:
    """Scales [H, D] of each cache of a bundle: `keys_0`, `values_0`.

    Raises InputError for a bundle whose keys and values cannot be int8, CalibrationError for a
    calibration that is not of its checkpoint, or says nothing of them.
    """
    calibration.check_source(bundle.manifest.source, bundle.folder)
    if bundle.manifest.cache_dtype != "float32":
        raise InputError(
            f"{bundle.folder} keeps keys and values in {bundle.manifest.cache_dtype}; int8 takes "
            "the place of float32 only. Leave --kv-cache out, or export with --dtype fp32."
        )
    if bundle.manifest.calibration is not None:
        raise InputError(
            f"{bundle.folder} was itself made with a calibration: its values are scaled, and what "
            "is known of the checkpoint's does not hold for them. Leave --kv-cache out, or make it "
            "by a recipe without: int8, int4, int4-edge."
        )
    model = bundle.model
    found = {}
    for layer in range(model.layers):
        width = model.kv_heads * model.head_dim
        pairs = _reach(calibration.of_cache(f"keys_{layer}", width // 2), model.kv_heads)
        values = _reach(calibration.of_cache(f"values_{layer}", width), model.kv_heads)
        found[f"keys_{layer}"] = _scales(np.concatenate((pairs, pairs), axis=1))
        found[f"values_{layer}"] = _scales(values)
    return found


def _reach(found: Statistics, heads: int) -> Doubles:
    """What has a code of its own, by head and channel or pair."""
    return (found.mean + HEADROOM * (found.largest - found.mean)).reshape(heads, -1)


def _scales(reach: Doubles) -> Floats:
    """[H, D] -> [H, D]; none is 0, which ONNX Runtime would take for 1."""
    wide = reach / LARGEST
    least = np.maximum(_LEAST * wide.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.maximum(wide, least).astype(np.float32)


def quantize_cache(model: onnx.ModelProto, scales: Mapping[str, Floats]) -> int:
    """Let every GroupQueryAttention keep int8, in place. Returns how many there are.

    Raises InputError for a graph that has another attention over a cache: it was not lowered.
    """
    graph = model.graph
    ports = [v for v in (*graph.input, *graph.output) if v.name.startswith(_NAMES)]
    nodes = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    if 4 * len(nodes) != len(ports):
        raise InputError(
            f"{len(nodes)} of the {len(ports) // 4} layers can be given ONNX Runtime's own "
            "attention, which alone takes keys and values in int8: heads must be multiples of 16 "
            "wide, and see all positions. Leave --kv-cache out."
        )
    for port in ports:
        port.type.tensor_type.elem_type = TensorProto.INT8
    tensors = [numpy_helper.from_array(values, _scale(name)) for name, values in scales.items()]
    for node in nodes:
        own = [_scale(past.removeprefix("past_")) for past in node.input[3:5]]
        node.input.extend(["", "", "", *own])  # position ids, bias, head sink
        node.attribute.extend(
            [
                helper.make_attribute("k_quant_type", "PER_CHANNEL"),
                helper.make_attribute("v_quant_type", "PER_CHANNEL"),
                helper.make_attribute("kv_cache_bit_width", 8),
            ]
        )
    rewrite(model, {}, set(), tensors)
    return len(nodes)


def watch_states(model: onnx.ModelProto) -> None:
    """Let what is NaN or infinite in keys and values come through, in place.

    Codes cannot be either: where only keys are, an answer would be made of what they became. Their
    squares are summed, and the sum of all layers, times 0, is added to what the last attention
    gives: 0, or NaN in just the rows that have one.
    """
    graph = model.graph
    places = [i for i, node in enumerate(graph.node) if node.op_type == "GroupQueryAttention"]
    sums: list[str] = []
    nodes: list[onnx.NodeProto] = []
    for place in places:
        node = graph.node[place]
        for state in [name for name in node.input[1:3] if name] or node.input[:1]:  # or all in one
            sums.append(f"{_WATCHED}_{len(sums)}")  # [B, 1, 1]
            nodes.append(
                helper.make_node("ReduceSumSquare", [state, f"{_WATCHED}_axes"], sums[-1:])
            )
    last = graph.node[places[-1]]
    output, last.output[0] = last.output[0], f"{last.output[0]}_unwatched"
    total, nothing = f"{_WATCHED}_total", f"{_WATCHED}_nothing"
    nodes += [
        helper.make_node("Sum", sums, [total]),
        helper.make_node("Mul", [total, f"{_WATCHED}_zero"], [nothing]),
        helper.make_node("Add", [last.output[0], nothing], [output]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2], np.int64), f"{_WATCHED}_axes"),
        numpy_helper.from_array(np.array(0, np.float32), f"{_WATCHED}_zero"),
    ]
    rewrite(model, {places[-1] + 1: nodes}, set(), constants)


def with_int8_cache(manifest: Manifest) -> Manifest:
    """The manifest of a build whose keys and values are int8."""
    spec, kept = manifest.pieces[PIECE], KV_CACHES[INT8]

    def changed(ports: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            dataclasses.replace(port, dtype=kept) if port.name.startswith(_NAMES) else port
            for port in ports
        )

    own = dataclasses.replace(spec, inputs=changed(spec.inputs), outputs=changed(spec.outputs))
    return dataclasses.replace(manifest, cache_dtype=kept, pieces={**manifest.pieces, PIECE: own})


def _scale(cache: str) -> str:
    return f"{cache}_scale"
