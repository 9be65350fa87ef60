"""A sum and the norm that reads it, as one operator: SkipSimplifiedLayerNormalization."""

import onnx
from mimo_edge.engines.ort.graph import DOMAIN, constants, rewrite, users
from onnx import TensorProto, helper


def lower_norms(model: onnx.ModelProto) -> int:
    """Rewrite Add -> RMSNormalization in place, in float32. Returns how many there were.

    The sum goes on as an output of the new node.
    """
    graph, held, readers = model.graph, constants(model), users(model)
    at: dict[int, list[onnx.NodeProto]] = {}
    gone: set[int] = set()
    for index, node in enumerate(graph.node):
        norms = [i for i in readers[node.output[0]] if _is_norm(graph.node[i], held)]
        if node.op_type != "Add" or len(norms) != 1 or any(name in held for name in node.input):
            continue
        norm = graph.node[norms[0]]
        epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
        at[index] = [
            helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [*node.input, norm.input[1]],
                [norm.output[0], "", "", node.output[0]],
                name=f"{norm.output[0]}_sum",
                domain=DOMAIN,
                epsilon=epsilon,
            )
        ]
        gone.update((index, norms[0]))
    rewrite(model, at, gone, [])
    return len(at)


def _is_norm(node: onnx.NodeProto, held: dict[str, TensorProto]) -> bool:
    """Over the last axis, with a scale in float32."""
    scale = held.get(node.input[1]) if node.op_type == "RMSNormalization" else None
    return scale is not None and scale.data_type == TensorProto.FLOAT and len(scale.dims) == 1
