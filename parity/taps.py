"""Inner states of a bundle's pieces, found by the names of weights.

Every layer begins with a norm, and weights keep their names through tracing and quantisation: what
the norm of `layers.7.input_layernorm.weight` reads is the state before layer 7. No graph is written
for it: outputs are added to a copy in memory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.backends.ort import OrtBackend
from numpy.typing import NDArray

NORMS = ("RMSNormalization", "LayerNormalization")
HEAD = "patch_decoder.local_transformer_lm_heads.{}.weight"
HEAD_SCORES = "scores_"  # with the codebook: what a head of the patch decoder gives
# piece -> the output that shows what comes after the last tap. Codes are no numbers to compare so.
OUTPUTS = {"patch_encoder": "embeddings", "backbone": "logits", "tokenizer_decoder": "wav"}
Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Tap:
    """A place in a graph: what the norm of this name reads, or the piece's output."""

    name: str
    tensor: str

    @property
    def is_norm(self) -> bool:
        """Outputs have names without a dot."""
        return "." in self.name


class TappedPiece:
    """One piece of a bundle on ONNX Runtime, with its inner states to be asked for."""

    def __init__(self, backend: OrtBackend, piece: str) -> None:
        self._backend, self.piece = backend, piece
        self._model = onnx.load(backend.bundle.path(piece), load_external_data=False)

    @cached_property
    def taps(self) -> list[Tap]:
        """In the order of computing; the last is the output."""
        graph = self._model.graph
        found = _norm_taps(graph)
        if self.piece == "patch_decoder":
            heads = range(self._backend.bundle.model.n_q)
            return [*found, *(Tap(f"{HEAD_SCORES}{k}", head_output(graph, k)) for k in heads)]
        output = OUTPUTS.get(self.piece)
        return found if output is None else [*found, Tap(output, output)]

    def run(self, taps: Iterable[Tap], feed: Feed) -> tuple[dict[str, Floats], Feed]:
        """Values of taps by name, and the piece's own outputs."""
        return self._run(self._with_outputs(taps), list(taps), feed)

    def resume(self, start: Tap, value: Floats, end: Tap, feed: Feed) -> Floats:
        """What `end` is if the state at `start` is `value`: the segment between them alone."""
        model = self._with_outputs([end])
        graph, given, cut = model.graph, f"{start.name}_given", f"{start.name}_cut"
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == start.tensor:
                    node.input[place] = cut
        norm = next(t for t in graph.initializer if t.name == f"{start.name}.weight")
        cast = onnx.helper.make_node("Cast", [given], [cut], to=norm.data_type)
        graph.node.insert(0, cast)
        float32 = onnx.TensorProto.FLOAT
        graph.input.append(onnx.helper.make_tensor_value_info(given, float32, [None] * value.ndim))
        values, _ = self._run(model, [end], {**feed, given: value.astype(np.float32)})
        return values[end.name]

    def weights_between(self, start: Tap | None, end: Tap) -> list[str]:
        """Names of the weights in a segment; without `start`, of all before `end`."""
        graph = self._model.graph
        made = {output: node for node in graph.node for output in node.output}
        stored = {t.name for t in graph.initializer if len(t.dims) > 0}
        found, seen, left = [], set(), [end.tensor]
        while left:
            name = left.pop()
            if name in seen or (start is not None and name == start.tensor):
                continue
            seen.add(name)
            if name in stored and name.endswith((".weight", ".bias", ".embed")):
                found.append(name)
            if name in made:
                left.extend(made[name].input)
        return sorted(found)

    def _with_outputs(self, taps: Iterable[Tap]) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph, float32 = model.graph, onnx.TensorProto.FLOAT
        for tap in taps:
            cast = onnx.helper.make_node("Cast", [tap.tensor], [output_of(tap.name)], to=float32)
            graph.node.append(cast)
            graph.output.append(
                onnx.helper.make_tensor_value_info(output_of(tap.name), float32, None)
            )
        return model

    def session(self, taps: Iterable[Tap]) -> ort.InferenceSession:
        """The piece with these values as outputs beside its own, named by `output_of`."""
        return self._open(self._with_outputs(taps))

    def _open(self, model: onnx.ModelProto) -> ort.InferenceSession:
        return self._backend.open_graph(self.piece, model.SerializeToString())

    def _run(
        self, model: onnx.ModelProto, taps: list[Tap], feed: Feed
    ) -> tuple[dict[str, Floats], Feed]:
        session = self._open(model)
        names = [port.name for port in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, dict(feed)), strict=True))
        return {tap.name: outputs.pop(output_of(tap.name)) for tap in taps}, outputs


def _norm_taps(graph: onnx.GraphProto) -> list[Tap]:
    """In half precision a norm reads and gives float32 through casts, and its weight comes after
    it as a product."""
    stored = {t.name for t in graph.initializer if t.name.endswith(".weight")}
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    products = {  # what is multiplied by a weight -> the weight
        other: weight
        for node in graph.node
        if node.op_type == "Mul"
        for weight, other in (tuple(node.input), tuple(reversed(node.input)))
        if weight in stored
    }
    weights = {casts.get(name, name): weight for name, weight in products.items()}
    found = []
    for node in graph.node:
        if node.op_type in NORMS:
            given = casts.get(node.input[1], node.input[1])
            weight = given if given in stored else weights.get(node.output[0])
            if weight is not None:
                tensor = casts.get(node.input[0], node.input[0])
                found.append(Tap(weight.removesuffix(".weight"), tensor))
    return found


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


def output_of(tap: str) -> str:
    """What the output of a tap is called."""
    return f"tap:{tap}"
