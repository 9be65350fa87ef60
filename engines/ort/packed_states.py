"""Queries, keys and values of one product go to the attention as they lie: nothing is split."""

import onnx
from mimo_edge.engines.ort.graph import rewrite, users


def pack_states(model: onnx.ModelProto) -> int:
    """Give each GroupQueryAttention the product that a Split cuts into just its three inputs.

    Returns how many there were.
    """
    graph, readers = model.graph, users(model)
    gone: set[int] = set()
    for index, node in enumerate(graph.node):
        if node.op_type != "Split" or len(node.output) != 3:
            continue
        last = {reader for output in node.output for reader in readers[output]}
        if len(last) != 1:
            continue
        attention = graph.node[last.pop()]
        if attention.op_type == "GroupQueryAttention" and attention.input[:3] == node.output[:]:
            attention.input[0] = node.input[0]
            attention.input[1] = attention.input[2] = ""
            gone.add(index)
    rewrite(model, {}, gone, [])
    return len(gone)
