"""Attention over a cache, as ONNX Runtime's own operator for it.

    RotaryEmbedding, TensorScatter of keys and values, Attention under a mask      become
    GroupQueryAttention, which does all of it for the positions that are there

The standard operators compute over the whole capacity of the cache, and the mask hides the rest.
This one takes several rows only where each brings one position, or none holds any: a prompt is
read one row at a time, as the runtime does.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from mimo_edge.engines.ort.graph import DOMAIN, constants, producers, rewrite, users
from onnx import TensorProto, helper, numpy_helper

_EVEN = 16  # the operator rotates heads whose width is a multiple of this
# names of what all layers share
LAST, LONGEST, COS, SIN = "last_positions", "longest", "rotary_cos", "rotary_sin"


@dataclass(frozen=True)
class Attended:
    """One layer's attention in the stored graph, by the names of its values."""

    states: tuple[str, str, str]  # queries, keys, values [B, T, H * D], not rotated
    past: tuple[str, str]  # keys, values [B, H, S, D]
    present: tuple[str, str]
    start: str  # [B]: where T positions are written
    output: str  # [B, T, H * D]
    scale: float
    heads: int  # of the queries
    cached_heads: int
    angles: str  # cosines of
    nodes: tuple[int, ...]


def lower_attention(model: onnx.ModelProto, positions: int) -> int:
    """Rewrite each attention over a cache whose rows hold at most so many positions, in place.

    Returns how many there were. Left as they are: caches that are not float32, which the CPU has no
    fast kernels for; heads that the operator cannot rotate; windows that are shorter than the
    context.
    """
    found = _attended(model)
    held = constants(model)
    if not found or _window(model, held) < positions:
        return 0
    nodes, tensors = _shared(model, found[0], positions, held)
    at = {min(index for layer in found for index in layer.nodes): nodes}
    for layer in found:
        place = max(layer.nodes)
        at[place] = [*at.get(place, ()), _node(layer)]
    rewrite(model, at, {index for layer in found for index in layer.nodes}, tensors)
    return len(found)


def _attended(model: onnx.ModelProto) -> list[Attended]:
    graph, made, readers = model.graph, producers(model), users(model)
    inputs = {value.name: value.type.tensor_type for value in graph.input}
    heads = {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in graph.value_info if _4d(v)}
    places = {id(node): index for index, node in enumerate(graph.node)}

    def flat(name: str) -> str:
        """Of states that were given heads, what they were before."""
        node = made[name]
        return node.input[0] if node.op_type == "Reshape" else flat(node.input[0])

    found = []
    for index, node in enumerate(graph.node):
        if node.op_type != "Attention":
            continue
        scatters = [made[name] for name in node.input[1:3] if name in made]
        if [other.op_type for other in scatters] != ["TensorScatter", "TensorScatter"]:
            continue
        keys, values = scatters
        cache = inputs[keys.input[0]]
        width = cache.shape.dim[3].dim_value
        if cache.elem_type != TensorProto.FLOAT or width % _EVEN:
            continue
        query, key = made[node.input[0]], made[keys.input[1]]
        gone = [places[id(keys)], places[id(values)], index]
        last = node
        while last.op_type != "Reshape":  # heads and time may have to change places before
            gone += readers[last.output[0]]
            last = graph.node[gone[-1]]
        found.append(
            Attended(
                states=(flat(query.input[0]), flat(key.input[0]), flat(values.input[1])),
                past=(keys.input[0], values.input[0]),
                present=(keys.output[0], values.output[0]),
                start=keys.input[2],
                output=last.output[0],
                scale=next(a.f for a in node.attribute if a.name == "scale"),
                heads=heads[query.input[0]],
                cached_heads=cache.shape.dim[1].dim_value,
                angles=_angles(made, query.input[1]),
                nodes=tuple(gone),
            )
        )
    return found


def _4d(value: onnx.ValueInfoProto) -> bool:
    return len(value.type.tensor_type.shape.dim) == 4


def _angles(made: dict[str, onnx.NodeProto], name: str) -> str:
    """What the cosines of a table are taken of."""
    node = made[name]
    return node.input[0] if node.op_type == "Cos" else _angles(made, node.input[0])


def _window(model: onnx.ModelProto, held: dict[str, TensorProto]) -> float:
    """Positions that a query sees at most: the mask is key > position - window where it has one."""
    made = producers(model)
    for node in model.graph.node:
        if node.op_type == "Greater" and node.input[1] in made:
            before = made[node.input[1]]
            if before.op_type == "Sub" and before.input[1] in held:
                return float(numpy_helper.to_array(held[before.input[1]]))
    return np.inf


def _shared(
    model: onnx.ModelProto, layer: Attended, positions: int, held: dict[str, TensorProto]
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Where rows end, and the tables of the rotation."""
    made = producers(model)
    frequencies = next(name for name in made[layer.angles].input if name in held)
    angles = np.arange(positions, dtype=np.float32)[:, None] * numpy_helper.to_array(
        held[frequencies]
    ).reshape(1, -1)
    tensors = [
        numpy_helper.from_array(np.cos(angles), COS),
        numpy_helper.from_array(np.sin(angles), SIN),
        numpy_helper.from_array(np.array([1], np.int32), f"{LAST}_one"),
    ]
    time, kind = f"{LAST}_time", TensorProto.INT32
    nodes = [
        helper.make_node("Shape", [layer.states[0]], [f"{time}_long"], start=1, end=2),
        helper.make_node("Cast", [f"{time}_long"], [time], to=kind),
        helper.make_node("Cast", [layer.start], [f"{LAST}_start"], to=kind),
        helper.make_node("Add", [f"{LAST}_start", time], [f"{LAST}_lengths"]),
        helper.make_node("Sub", [f"{LAST}_lengths", f"{LAST}_one"], [LAST]),
        helper.make_node("ReduceMax", [f"{LAST}_lengths"], [LONGEST], keepdims=0),
    ]
    return nodes, tensors


def _node(layer: Attended) -> onnx.NodeProto:
    return helper.make_node(
        "GroupQueryAttention",
        [*layer.states, *layer.past, LAST, LONGEST, COS, SIN],
        [layer.output, *layer.present],
        name=f"{layer.output}_attention",
        domain=DOMAIN,
        num_heads=layer.heads,
        kv_num_heads=layer.cached_heads,
        scale=layer.scale,
        do_rotary=1,
    )
