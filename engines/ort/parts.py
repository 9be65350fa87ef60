"""Parts of a tensor are not made where all of them come together again.

Split -> Concat of all parts      becomes what was split: the scores of all speech heads
Split -> Add -> Add -> ...        becomes Split -> Sum, which adds in the same order
"""

import onnx
from mimo_edge.engines.ort.graph import axis_of, producers, rewrite, users
from onnx import helper


def lower_parts(model: onnx.ModelProto) -> int:
    """Rewrite both in place. Returns how many there were."""
    return _join_parts(model) + _add_parts(model)


def _join_parts(model: onnx.ModelProto) -> int:
    graph, made, readers = model.graph, producers(model), users(model)
    results = {value.name for value in graph.output}
    gone: set[int] = set()
    for index, node in enumerate(graph.node):
        split = made.get(node.input[0]) if node.op_type == "Concat" else None
        if split is None or split.op_type != "Split" or node.output[0] in results:
            continue
        if list(split.output) == list(node.input) and axis_of(split) == axis_of(node):
            for reader in readers[node.output[0]]:
                inputs = graph.node[reader].input
                inputs[:] = [split.input[0] if n == node.output[0] else n for n in inputs]
            gone.add(index)
    rewrite(model, {}, gone, [])
    return len(gone)


def _add_parts(model: onnx.ModelProto) -> int:
    graph, readers = model.graph, users(model)
    at: dict[int, list[onnx.NodeProto]] = {}
    gone: set[int] = set()
    for split in graph.node:
        chain = _chain(graph, readers, split) if split.op_type == "Split" else []
        if len(chain) > 1:
            output = graph.node[chain[-1]].output[0]
            at[chain[-1]] = [helper.make_node("Sum", split.output, [output], name=f"{output}_sum")]
            gone.update(chain)
    rewrite(model, at, gone, [])
    return len(at)


def _chain(
    graph: onnx.GraphProto, readers: dict[str, list[int]], split: onnx.NodeProto
) -> list[int]:
    """The sums that add up all parts of a Split, from the first part on; none if not all."""
    so_far, found = split.output[0], []
    for part in split.output[1:]:
        following = readers[so_far]
        if len(following) != 1 or readers[part] != following:
            return []
        node = graph.node[following[0]]
        if node.op_type != "Add" or set(node.input) != {so_far, part}:
            return []
        found.append(following[0])
        so_far = node.output[0]
    return found
