"""The form of quantised weights in a graph: standard operators that every backend reads.

    layer   DequantizeLinear(codes [K, N], scales) -> MatMul
    table   Gather of codes and of scales by row -> DequantizeLinear: the table stays mapped

Scales are [K / block, N] on axis 0, [N] on axis 1 for whole channels, [rows, 1] of a table.
"""

from collections import defaultdict
from collections.abc import Mapping

import onnx
from mimo_edge.engines.components import Matrix, matrix
from mimo_edge.engines.recipe import Form
from mimo_edge.engines.schemes import CHANNEL
from onnx import TensorProto, helper

CODE_TYPES = {
    "int4": TensorProto.INT4,
    "int8": TensorProto.INT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
}
FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


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
    model: onnx.ModelProto, weights: Mapping[str, Matrix], forms: Mapping[str, Form]
) -> None:
    """Give a float graph the nodes and initializers of these forms, in place.

    The initializers have types and shapes; their data is to be written.
    """
    graph, uses = model.graph, _uses(model)
    float_type = {t.name: t.data_type for t in graph.initializer}
    before: dict[int, list[onnx.NodeProto]] = defaultdict(list)  # node -> what goes before it
    replaced: set[int] = set()
    new: dict[str, list[TensorProto]] = {}
    for name, form in forms.items():
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
    nodes = []
    for node in graph.node:
        nodes += before[id(node)]
        if id(node) not in replaced:
            nodes.append(node)
    tensors = [t for old in graph.initializer for t in new.get(old.name, [old])]
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
