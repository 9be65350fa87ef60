"""A graph that tells what its layers read: one output more, [numbers], computed in the graph.

Of every tensor that products with weights read, and of every channel of it: the largest absolute
value, the sum of absolute values, the sum of squares; then the count of positions. Memory is that
of these numbers, however long the input.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from mimo_edge.engines.calibration import Statistics
from mimo_edge.engines.components import bare, matrix
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

STATISTICS = "statistics"  # the output


@dataclass(frozen=True)
class Site:
    """A tensor [..., width], and the weights of the layers that read it."""

    tensor: str
    width: int
    weights: tuple[str, ...]


def observe(model: onnx.ModelProto) -> list[Site]:
    """Add the output, in place, if there is anything to observe. Returns what is in it, in order.

    Layers are known by the names of their weights, whether these are floats or quantised.
    """
    sites = sites_of(model.graph)
    if not sites:
        return []
    constants = {"observed_rows": np.array([0], np.int64)}
    parts: list[str] = []
    for number, site in enumerate(sites):
        prefix = f"observed_{number}"
        constants[f"{prefix}_shape"] = np.array([-1, site.width], np.int64)
        for node in _nodes(prefix, site.tensor):
            model.graph.node.append(node)
        parts += [f"{prefix}_{name}" for name in ("largest", "total", "squares", "count")]
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    model.graph.node.append(helper.make_node("Concat", parts, [STATISTICS], axis=0))
    model.graph.output.append(helper.make_tensor_value_info(STATISTICS, TensorProto.FLOAT, [None]))
    return sites


def read(sites: Sequence[Site], values: NDArray[np.float32]) -> dict[str, Statistics]:
    """The output of one run -> statistics by weight, without the prefix of streams."""
    found: dict[str, Statistics] = {}
    start, numbers = 0, values.astype(np.float64)
    for site in sites:
        stop = start + 3 * site.width
        rows = numbers[start:stop].reshape(3, site.width)
        one = Statistics(rows[0], rows[1], rows[2], round(float(numbers[stop])))
        found |= {bare(weight): one for weight in site.weights}
        start = stop + 1
    return found


def _nodes(prefix: str, tensor: str) -> Iterator[onnx.NodeProto]:
    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [f"{prefix}_{name}"], **attributes)

    flat, sizes, rows = f"{prefix}_flat", f"{prefix}_sizes", "observed_rows"
    yield node("Cast", [tensor], "float", to=TensorProto.FLOAT)
    yield node("Reshape", [f"{prefix}_float", f"{prefix}_shape"], "flat")
    yield node("Abs", [flat], "sizes")
    yield node("ReduceMax", [sizes, rows], "largest", keepdims=0)
    yield node("ReduceSum", [sizes, rows], "total", keepdims=0)
    yield node("ReduceSumSquare", [flat, rows], "squares", keepdims=0)
    yield node("Shape", [flat], "length", start=0, end=1)
    yield node("Cast", [f"{prefix}_length"], "count", to=TensorProto.FLOAT)


def sites_of(graph: onnx.GraphProto) -> list[Site]:
    """What the layers of a graph read, in the order of computing."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    readers: dict[str, dict[str, int]] = {}  # tensor -> weight -> inputs
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        source = made.get(node.input[1])
        name = source.input[0] if source and source.op_type == "DequantizeLinear" else node.input[1]
        if name in stored and len(stored[name].dims) == 2:
            inputs, outputs = stored[name].dims
            if matrix(name, outputs, inputs) is not None:
                readers.setdefault(node.input[0], {})[name] = inputs
    return [Site(t, next(iter(w.values())), tuple(w)) for t, w in readers.items()]
