"""What the bundle's graphs need before TensorRT takes them. Each step is named, small and tested.

The weights stay where they are: a lowered graph points into the bundle's data files.
"""

import onnx
from mimo_edge.engines.lowered_tables import pack_tables
from mimo_edge.engines.profiles import CAPACITY
from onnx import helper

FLOAT, BFLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16


def lower(model: onnx.ModelProto, capacity: int) -> onnx.ModelProto:
    """All steps, in place."""
    fix_capacity(model, capacity)
    pack_tables(model)
    widen_transposed_convolutions(model)
    return model


def fix_capacity(model: onnx.ModelProto, capacity: int) -> None:
    """Give the key-value cache a static length.

    TensorRT updates a cache in place only if its sequence axis is static (KVCacheUpdate refuses
    anything else), and the cache must be an input and an output of the network, as it is here.
    """
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == CAPACITY:
                dim.dim_value = capacity  # setting the value clears the name


def widen_transposed_convolutions(model: onnx.ModelProto) -> None:
    """Compute bf16 ConvTranspose in float32.

    TensorRT for RTX has no bf16 kernel for it ("Could not infer output types"). There are two in
    the model, in the audio tokenizer's decoder; float32 is only more exact.
    """
    graph = model.graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type != "ConvTranspose" or stored.get(node.input[1]) != BFLOAT16:
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            wide = f"{node.name}_wide_{index}"
            nodes.append(helper.make_node("Cast", [name], [wide], name=wide, to=FLOAT))
            node.input[index] = wide
        output, wide = node.output[0], f"{node.name}_wide"
        node.output[0] = wide
        nodes.append(node)
        nodes.append(helper.make_node("Cast", [wide], [output], name=f"{wide}_back", to=BFLOAT16))
    del graph.node[:]
    graph.node.extend(nodes)
