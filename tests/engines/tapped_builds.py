"""Builds on the stand-in, by a TensorRT that gets something wrong."""

from pathlib import Path
from typing import Any

import onnx
from mimo_edge.engines.apart import Request
from mimo_edge.parity.tap import output_of

from tests.engines.conftest import Fault
from tests.engines.fake_tensorrt import fake_plan

LAYER = "backbone.model.layers.{}.{}"
PRODUCT = LAYER.format(1, "mlp.down_proj.weight")


def wrong_product(piece: str, graph: onnx.GraphProto) -> None:
    """TensorRT computes one product of a layer 5 % too large, whatever the bundle says."""
    for place, node in enumerate(graph.node):
        if node.op_type == "MatMul" and PRODUCT in node.input:
            output = node.output[0]
            node.output[0] = f"{output}_right"
            factor = onnx.helper.make_tensor("factor", onnx.TensorProto.FLOAT, [], [1.05])
            graph.initializer.append(factor)
            wrong = onnx.helper.make_node("Mul", [node.output[0], "factor"], [output])
            graph.node.insert(place + 1, wrong)
            return


class FakeBuilds:
    """In the place of `build_apart`: `fault` is TensorRT's, unless one of the taps `gone` is an
    output and so keeps it from fusing what it gets wrong."""

    def __init__(self, folder: Path, fault: Fault = lambda *_: None, gone: str = "") -> None:
        self.shown: list[list[str]] = []  # of every engine
        self.asked: list[tuple[Request, bytes]] = []  # the same, with their graphs
        self._folder, self._fault, self._gone = folder, fault, gone

    def __call__(
        self, request: Request, model: onnx.ModelProto, plan: Path, on_progress: Any = None
    ) -> None:
        outputs = [port.name for port in model.graph.output]
        self.asked.append((request, model.SerializeToString()))
        self.shown.append([name for name in outputs if name.startswith("tap:")])
        if output_of(self._gone) not in outputs:
            self._fault(request.graph.stem, model.graph)
        folder = self._folder / str(len(self.shown))
        folder.mkdir()
        ranges, capacity = list(request.profiles), request.capacity
        plan.write_bytes(fake_plan(request.graph, ranges, capacity, folder, model))
