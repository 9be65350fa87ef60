"""The form of quantised weights in a graph: standard operators that every backend reads.

    layer   DequantizeLinear(codes [K, N], scales) -> MatMul
    input   QuantizeLinear -> DequantizeLinear -> MatMul, where a layer's input is rounded, too
    table   Gather of codes and of scales by row -> DequantizeLinear: the table stays mapped

Scales are [K / block, N] on axis 0, [N] on axis 1 for whole channels, [rows, 1] of a table, and
one number of an input.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from mimo_edge.engines.components import Matrix, matrix
from mimo_edge.engines.recipe import Form
from mimo_edge.engines.schemes import CHANNEL
from mimo_edge.runtime.bundle.errors import CalibrationError
from onnx import TensorProto, helper

CODE_TYPES = {
    "int4": TensorProto.INT4,
    "int8": TensorProto.INT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
}
ROUNDED = "rounded"  # in the names of what rounds an input
FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Rounding:
    """How what a layer reads is rounded: to codes of this scheme, with one scale for all."""

    scheme: str
    step: float


def scales_of(name: str) -> str:
    """The initializer that holds the scales of a quantised one."""
    return f"{name}_scales"


def matrices(model: onnx.ModelProto) -> dict[str, Matrix]:
    """Every weight of a float graph that can be quantised, by name: the constant [K, N] of
    products, and the tables that rows are looked up in."""
    uses = _uses(model)
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_type not in FLOAT_TYPES or len(tensor.dims) != 2 or not uses[tensor.name]:
            continue
        if all(node.op_type == "MatMul" and i == 1 for node, i in uses[tensor.name]):
            inputs, outputs = tensor.dims
            table = False
        elif all(node.op_type == "Gather" and i == 0 for node, i in uses[tensor.name]):
            outputs, inputs = tensor.dims
            table = True
        else:
            continue
        weight = matrix(tensor.name, outputs, inputs)
        if weight is not None and weight.table == table:
            found[tensor.name] = weight
    return found


def quantize_graph(
    model: onnx.ModelProto,
    weights: Mapping[str, Matrix],
    forms: Mapping[str, Form],
    rounding: Mapping[str, Rounding] | None = None,
) -> None:
    """Give a float graph the nodes and initializers of these forms, in place.

    The initializers have types and shapes; their data is to be written. The inputs of the layers in
    `rounding` are rounded before; the few numbers which that takes lie in the graph.
    """
    graph, uses = model.graph, _uses(model)
    float_type = {t.name: t.data_type for t in graph.initializer}
    before: dict[int, list[onnx.NodeProto]] = defaultdict(list)  # node -> what goes before it
    replaced: set[int] = set()
    new: dict[str, list[TensorProto]] = {}
    made: dict[str, tuple[list[onnx.NodeProto], list[TensorProto]]] = {}
    order = {id(node): place for place, node in enumerate(graph.node)}
    # in the order of computing, so that what several layers read is rounded before the first
    for name in sorted(forms, key=lambda name: min(order[id(node)] for node, _ in uses[name])):
        form = forms[name]
        weight = weights[name]
        new[name] = _initializers(weight, form, float_type[name])
        if weight.table:
            for node, _ in uses[name]:
                before[id(node)] += _look_up(weight, node)
                replaced.add(id(node))
        else:
            users = {id(node) for node, _ in uses[name]}
            first = next(node for node in graph.node if id(node) in users)
            before[id(first)].append(_dequantize(weight, form))
            for node, index in uses[name]:
                node.input[index] = f"{name}_dequantized"
                if rounding and name in rounding:
                    tensor, how = node.input[0], rounding[name]
                    result = f"{tensor}_{ROUNDED}_{how.scheme}"
                    if result not in made:  # once for all layers that read it
                        made[result] = _round(tensor, result, how, float_type[name])
                        before[id(node)] += made[result][0]
                    node.input[0] = result
    nodes = []
    for node in graph.node:
        nodes += before[id(node)]
        if id(node) not in replaced:
            nodes.append(node)
    tensors = [t for old in graph.initializer for t in new.get(old.name, [old])]
    tensors += [tensor for _, added in made.values() for tensor in added]
    # some graphs say the type of an initializer a second time, which is that of the floats
    types = [value for value in graph.value_info if value.name not in new]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    graph.value_info.extend(types)


def _initializers(weight: Matrix, form: Form, float_type: int) -> list[TensorProto]:
    if weight.table:
        codes, scales = [weight.outputs, weight.inputs], [weight.outputs, 1]
    elif form.block == CHANNEL:
        codes, scales = [weight.inputs, weight.outputs], [weight.outputs]
    else:
        codes = [weight.inputs, weight.outputs]
        scales = [weight.inputs // form.block, weight.outputs]
    return [
        TensorProto(name=weight.name, data_type=CODE_TYPES[form.scheme], dims=codes),
        TensorProto(name=scales_of(weight.name), data_type=float_type, dims=scales),
    ]


def _dequantize(weight: Matrix, form: Form) -> onnx.NodeProto:
    name = f"{weight.name}_dequantized"
    inputs = [weight.name, scales_of(weight.name)]
    if form.block == CHANNEL:
        return helper.make_node("DequantizeLinear", inputs, [name], name=name, axis=1)
    block = form.block
    return helper.make_node("DequantizeLinear", inputs, [name], name=name, axis=0, block_size=block)


def _round(
    tensor: str, result: str, how: Rounding, float_type: int
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Codes of a tensor, and numbers again. The zero point says what type the codes have."""
    scale, zero, codes = (f"{result}_{part}" for part in ("scale", "zero", "codes"))
    dtype = helper.tensor_dtype_to_np_dtype(float_type)
    with np.errstate(over="ignore"):
        step = np.array(how.step).astype(dtype)
    if not (np.isfinite(step) and step > 0):
        raise CalibrationError(
            f"what goes into {tensor} has the scale {how.step:.3g}, which {np.dtype(dtype)} cannot "
            "hold. Calibrate again, or choose a recipe that computes in fp32."
        )
    nodes = [
        helper.make_node("QuantizeLinear", [tensor, scale, zero], [codes], name=codes),
        helper.make_node("DequantizeLinear", [codes, scale, zero], [result], name=result),
    ]
    nothing = TensorProto(name=zero, data_type=CODE_TYPES[how.scheme], raw_data=bytes(1))
    return nodes, [TensorProto(name=scale, data_type=float_type, raw_data=step.tobytes()), nothing]


def _look_up(weight: Matrix, gather: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Rows of codes and scales in the place of a row of floats: a row is one block."""
    ids, output = gather.input[1], gather.output[0]
    codes, scales = f"{output}_codes", f"{output}_scales"
    return [
        helper.make_node("Gather", [weight.name, ids], [codes], name=codes, axis=0),
        helper.make_node("Gather", [scales_of(weight.name), ids], [scales], name=scales, axis=0),
        helper.make_node(
            "DequantizeLinear",
            [codes, scales],
            [output],
            name=f"{output}_dequantized",
            axis=-1,  # the ids may have any rank
            block_size=weight.inputs,
        ),
    ]


def _uses(model: onnx.ModelProto) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    uses: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            uses[name].append((node, index))
    return uses
