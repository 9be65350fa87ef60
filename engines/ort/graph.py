"""Rewriting a graph: nodes in the place of others, and what nothing uses any more goes."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import onnx
from onnx import TensorProto, helper

DOMAIN = "com.microsoft"  # of the operators that only ONNX Runtime has


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Value -> the node that computes it."""
    return {output: node for node in model.graph.node for output in node.output}


def constants(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """The initializers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def users(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Value -> the places of the nodes that read it."""
    found: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            found[name].append(index)
    return found


def rewrite(
    model: onnx.ModelProto,
    at: Mapping[int, Sequence[onnx.NodeProto]],
    gone: Collection[int],
    tensors: Sequence[TensorProto],
) -> None:
    """Put nodes before those at some places, remove others, and add initializers, in place.

    An initializer of a name that is there already takes its place.
    """
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.node):
        nodes += at.get(index, ())
        if index not in gone:
            nodes.append(node)
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    new = {tensor.name for tensor in tensors}
    held = [tensor for tensor in graph.initializer if tensor.name not in new]
    held = [tensor for tensor in (*held, *tensors) if tensor.name in wanted]
    # types of what is in between are found again; some would be those of before
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(held)
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
