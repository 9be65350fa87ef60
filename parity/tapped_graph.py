"""Inner states of a piece's graph, found by the names of weights.

Every layer begins with a norm, and weights keep their names through tracing and quantisation: what
the norm of `layers.7.input_layernorm.weight` reads is the state before layer 7. No graph is written
for it: outputs are added to a copy in memory.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from mimo_edge.parity.tap import HEAD_SCORES, OUTPUTS, Tap, given_of, output_of
from onnx import helper

NORMS = ("RMSNormalization", "LayerNormalization")
HEAD = "patch_decoder.local_transformer_lm_heads.{}.weight"
FLOAT = onnx.TensorProto.FLOAT


class TappedGraph:
    """The graph of one piece, and copies of it that show more. `n_q`: codebooks of the model."""

    def __init__(self, piece: str, path: Path, n_q: int) -> None:
        self.piece, self._n_q = piece, n_q
        self._model = onnx.load(path, load_external_data=False)

    @cached_property
    def taps(self) -> list[Tap]:
        """In the order of computing; the last is the output."""
        graph = self._model.graph
        found = _norm_taps(graph)
        if self.piece == "patch_decoder":
            heads = range(self._n_q)
            return [*found, *(Tap(f"{HEAD_SCORES}{k}", head_output(graph, k)) for k in heads)]
        output = OUTPUTS.get(self.piece)
        return found if output is None else [*found, Tap(output, output)]

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(self._model.graph.node)

    def is_input(self, tap: Tap) -> bool:
        """Whether nothing is computed before it."""
        return any(port.name == tap.tensor for port in self._model.graph.input)

    def with_outputs(self, taps: Iterable[Tap]) -> onnx.ModelProto:
        """The graph with these values as outputs beside its own, named by `output_of`."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        _add_outputs(model.graph, taps)
        return model

    def segment(self, start: Tap, end: Tap) -> onnx.ModelProto:
        """What computes `end` from the state at `start`, alone: the state is the input
        `given_of(start)`, float32. Caches that are written in it stay outputs."""
        model = self.with_outputs([end])
        graph, given = model.graph, given_of(start)
        between, _ = self._before(end, start)
        nodes = [n for n in graph.node if between.intersection(n.output)]
        nodes.append(graph.node[-1])  # which makes the output
        cut = f"{given}_cut"
        for node in nodes:
            for place, name in enumerate(node.input):
                if name == start.tensor:
                    node.input[place] = cut
        norm = next(t for t in graph.initializer if t.name == f"{start.name}.weight")
        nodes.insert(0, helper.make_node("Cast", [given], [cut], to=norm.data_type))
        read = {name for node in nodes for name in node.input}
        written = {name for node in nodes for name in node.output}
        port = helper.make_tensor_value_info(given, FLOAT, None)
        port.type.tensor_type.shape.CopyFrom(_shape_of(graph, start.tensor))
        kept: tuple[tuple[Any, list[Any]], ...] = (
            (graph.node, nodes),
            (graph.initializer, [t for t in graph.initializer if t.name in read]),
            (graph.input, [*(p for p in graph.input if p.name in read), port]),
            (graph.output, [p for p in graph.output if p.name in written]),
            (graph.value_info, []),
        )
        for field, values in kept:
            copies = [type(value).FromString(value.SerializeToString()) for value in values]
            del field[:]
            field.extend(copies)
        return model

    def weights_between(self, start: Tap | None, end: Tap) -> list[str]:
        """Names of the weights in a segment; without `start`, of all before `end`."""
        stored = {t.name for t in self._model.graph.initializer if len(t.dims) > 0}
        _, read = self._before(end, start)
        return sorted(
            name for name in read & stored if name.endswith((".weight", ".bias", ".embed"))
        )

    def _before(self, end: Tap, start: Tap | None) -> tuple[set[str], set[str]]:
        """What is computed for `end`, back to `start`; and all that is read for it."""
        made = {output: node for node in self._model.graph.node for output in node.output}
        computed: set[str] = set()
        read: set[str] = set()
        left = [end.tensor]
        while left:
            name = left.pop()
            if name in read or (start is not None and name == start.tensor):
                continue
            read.add(name)
            if name in made:
                computed.update(made[name].output)
                left.extend(made[name].input)
        return computed, read


def _add_outputs(graph: onnx.GraphProto, taps: Iterable[Tap]) -> None:
    for tap in taps:
        port = helper.make_tensor_value_info(output_of(tap.name), FLOAT, None)
        port.type.tensor_type.shape.CopyFrom(_shape_of(graph, tap.tensor))
        graph.node.append(helper.make_node("Cast", [tap.tensor], [port.name], to=FLOAT))
        graph.output.append(port)


def _shape_of(graph: onnx.GraphProto, tensor: str) -> onnx.TensorShapeProto:
    """As tracing has left it; every tensor that is tapped has one."""
    ports = (*graph.input, *graph.output, *graph.value_info)
    return next(port.type.tensor_type.shape for port in ports if port.name == tensor)


def _norm_taps(graph: onnx.GraphProto) -> list[Tap]:
    """In half precision a norm reads and gives float32 through casts, and its weight comes after
    it as a product."""
    stored = {t.name for t in graph.initializer if t.name.endswith(".weight")}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    weights = {casts.get(name, name): weight for name, weight in _products(graph, stored)}
    found = []
    for node in graph.node:
        if node.op_type in NORMS:
            given = casts.get(node.input[1], node.input[1])
            weight = given if given in stored else weights.get(node.output[0])
            if weight is not None:
                tensor = casts.get(node.input[0], node.input[0])
                found.append(Tap(weight.removesuffix(".weight"), tensor))
    return found


def _products(graph: onnx.GraphProto, stored: set[str]) -> Iterator[tuple[str, str]]:
    """(what is multiplied by a weight, the weight)"""
    for node in graph.node:
        if node.op_type == "Mul":
            for weight, other in (tuple(node.input), tuple(reversed(node.input))):
                if weight in stored:
                    yield other, weight


def head_output(graph: onnx.GraphProto, codebook: int) -> str:
    """The scores that a head of the patch decoder gives, by the name of its weight."""
    made = {output: node for node in graph.node for output in node.output}

    def weight_of(node: onnx.NodeProto) -> str:
        source: str = node.input[1]
        if source in made and made[source].op_type == "DequantizeLinear":
            source = made[source].input[0]
        return source

    weight = HEAD.format(codebook)
    (head,) = (n for n in graph.node if n.op_type == "MatMul" and weight_of(n) == weight)
    return str(head.output[0])
