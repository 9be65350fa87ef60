"""A graph that tells what its layers read: one output more, [numbers], computed in the graph.

Of every tensor that products with weights read, and of every channel of it: the largest absolute
value, the sum of absolute values, the sum of squares; then the count of positions. Memory is that
of these numbers, however long the input. What the backbone puts into its cache is observed alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from mimo_edge.engines.calibration import CACHE, Statistics
from mimo_edge.engines.components import bare, matrix
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

STATISTICS = "statistics"  # the output
_PAST = ("past_keys_", "past_values_")


@dataclass(frozen=True)
class Site:
    """A tensor [..., width], and the weights of the layers that read it, or the cache that it goes
    into."""

    tensor: str
    width: int
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Kept:
    """States [B, H, T, D] on their way into the cache `name`, as `Calibration` calls it."""

    name: str
    tensor: str
    heads: int
    head_dim: int

    @property
    def rotated(self) -> bool:
        """Keys are: their statistics are those of pairs of channels."""
        return self.name.startswith(f"{CACHE}keys_")

    @property
    def width(self) -> int:
        return self.heads * self.head_dim // (2 if self.rotated else 1)


def observe(model: onnx.ModelProto) -> list[Site]:
    """Add the output, in place, if there is anything to observe. Returns what is in it, in order.

    Layers are known by the names of their weights, whether these are floats or quantised.
    """
    sites = sites_of(model.graph)
    for kept in kept_by(model.graph):
        flat = f"{kept.name}_observed"
        model.graph.node.extend(_by_position(kept, flat))
        sites.append(Site(flat, kept.width, (kept.name,)))
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


def _by_position(kept: Kept, output: str) -> Iterator[onnx.NodeProto]:
    """States with a position's channels last [B, T, H, D]; of keys the lengths of the pairs that
    the rotation turns [B, T, H, D / 2]: channel i and i + D / 2."""
    wide, turned = f"{output}_float", f"{output}_turned"
    halves = [f"{output}_{part}" for part in ("first", "second")]
    last = turned if kept.rotated else output
    yield helper.make_node("Cast", [kept.tensor], [wide], to=TensorProto.FLOAT)
    yield helper.make_node("Transpose", [wide], [last], perm=[0, 2, 1, 3])
    if not kept.rotated:
        return
    yield helper.make_node("Split", [turned], halves, axis=-1, num_outputs=2)
    squares = [f"{half}_square" for half in halves]
    for half, square in zip(halves, squares, strict=True):
        yield helper.make_node("Mul", [half, half], [square])
    yield helper.make_node("Add", squares, [f"{output}_sum"])
    yield helper.make_node("Sqrt", [f"{output}_sum"], [output])


def kept_by(graph: onnx.GraphProto) -> list[Kept]:
    """What the backbone puts into its cache; nothing of other graphs."""
    if graph.name != "backbone":
        return []
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    found = []
    for node in graph.node:
        if node.op_type == "TensorScatter" and node.input[0].startswith(_PAST):
            name, shape = node.input[0].removeprefix("past_"), shapes[node.input[0]]
            found.append(Kept(f"{CACHE}{name}", node.input[1], shape[1], shape[3]))
    return found


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
