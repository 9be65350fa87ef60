"""A ring that holds little is short: its caches may have any number of slots, up to all of them.

    Attention(queries, TensorScatter(keys), TensorScatter(values), mask)      becomes
    the same with as much of the mask as the caches have slots

The operator computes over all slots, and the mask hides those that hold nothing yet. A stream
fills its ring from the first slot on, so that in its first lap whoever binds the caches can leave
out what lies beyond (runtime/backends/ort_codec.py): where a slot is in the ring does not depend
on how many there are. What is left out would add zeros.
"""

import dataclasses

import numpy as np
import onnx
from mimo_edge.engines.ort.graph import producers, rewrite
from mimo_edge.runtime.bundle.manifest import PieceSpec, TensorSpec
from mimo_edge.runtime.bundle.stream_sizes import most_slots, slots_axis
from onnx import TensorProto, helper, numpy_helper

_AXIS = 2  # of a cache [B, H, S, D]
_COUNT, _FIRST, _LAST, _MASK = (f"ring_{name}" for name in ("slots", "first", "axis", "mask"))


def lower_ring(model: onnx.ModelProto) -> int:
    """Let the caches of a ring have fewer slots, in place. Returns how many layers there were.

    All must share one mask [B, 1, T, S]; a graph in which they do not stays as it is.
    """
    graph, made = model.graph, producers(model)
    found = [
        (index, node)
        for index, node in enumerate(graph.node)
        if node.op_type == "Attention" and len(node.input) == 4 and _writes(made, node)
    ]
    if not found or len({node.input[3] for _, node in found}) > 1:
        return 0
    scatters = [made[name] for _, node in found for name in node.input[1:3]]
    caches = {name for node in scatters for name in (node.input[0], node.output[0])}
    for value in (*graph.input, *graph.output):
        if value.name in caches:
            size = value.type.tensor_type.shape.dim[_AXIS]
            size.dim_param = slots_axis(size.dim_value)
    tensors: list[TensorProto] = [
        numpy_helper.from_array(np.array([0], np.int64), _FIRST),
        numpy_helper.from_array(np.array([-1], np.int64), _LAST),
    ]
    first, mask = found[0][0], found[0][1].input[3]
    past = scatters[0].input[0]
    nodes = [
        helper.make_node("Shape", [past], [_COUNT], name=_COUNT, start=_AXIS, end=_AXIS + 1),
        helper.make_node("Slice", [mask, _FIRST, _COUNT, _LAST], [_MASK], name=_MASK),
    ]
    for _, node in found:
        node.input[3] = _MASK
    rewrite(model, {first: nodes}, set(), tensors)
    return len(found)


def _writes(made: dict[str, onnx.NodeProto], attention: onnx.NodeProto) -> bool:
    """Whether keys and values are caches that were just written to, in place."""
    return all(
        name in made and made[name].op_type == "TensorScatter" for name in attention.input[1:3]
    )


def with_short_rings(spec: PieceSpec, model: onnx.ModelProto) -> PieceSpec:
    """The ports of a piece as its lowered graph has them."""
    names = {
        value.name: value.type.tensor_type.shape.dim[_AXIS].dim_param
        for value in (*model.graph.input, *model.graph.output)
        if len(value.type.tensor_type.shape.dim) > _AXIS
    }

    def changed(ports: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        found = []
        for port in ports:
            axes = list(port.axes)
            if most_slots(names.get(port.name, "")) is not None:
                axes[_AXIS] = names[port.name]
            found.append(dataclasses.replace(port, axes=tuple(axes)))
        return tuple(found)

    return dataclasses.replace(spec, inputs=changed(spec.inputs), outputs=changed(spec.outputs))
