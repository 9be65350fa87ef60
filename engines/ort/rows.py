"""Products of many rows in whole numbers: what they read is rounded row by row, to int8.

    DequantizeLinear(codes [K, N], scales) -> MatMul [-> Add of a bias]      becomes
    rows / their largest number -> QuantizeLinear -> MatMulIntegerToFloat(codes [K, N]) -> times
    the largest number [-> Add of a bias]

A weight has one scale a channel, so that a whole product is summed in integers and scaled once:
with many rows twice as fast as MatMulNBits, which scales each block. Stored blocks are rounded
again, to int8. At one row it is the other way round, because int4 is half as many bytes to read.

A row has a scale of its own, so that it gets what it would get alone. Its numbers are uint8 around
128: for signed ones ONNX Runtime has no fast kernel on x86.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from mimo_edge.engines.dequantized import columns_of
from mimo_edge.engines.ort.graph import DOMAIN
from mimo_edge.engines.ort.products import Layer, Product
from mimo_edge.engines.weight_file import map_tensor
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LARGEST = 127
_SLICE = 1 << 22  # weights that are rounded again at a time
# instructions that sum four products of uint8 and int8 exactly; older ones saturate in between
_EXACT = {"avx512_vnni", "avx_vnni", "asimddp"}
# constants of all such products
_AXIS, _NOTHING, _LEAST, _STEP, _MIDDLE = (
    f"row_{name}" for name in ("axis", "nothing", "least", "step", "middle")
)

# what is computed on the way
_MEASURED = ("size", "largest", "total", "unknown")
_ROUNDED = ("scale", "unit", "codes", "sums", "scaled")


@dataclass(frozen=True)
class RowProduct(Product):
    """As MatMulIntegerToFloat."""

    def rewritten(
        self, held: Mapping[str, TensorProto]
    ) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        name, source = self.name, self.source
        scales, bias = f"{name}_scales", f"{name}_bias"
        tensors = [
            *_constants(),
            TensorProto(name=name, data_type=TensorProto.INT8, dims=[self.inputs, self.outputs]),
            TensorProto(name=scales, data_type=TensorProto.FLOAT, dims=[self.outputs]),
        ]
        size, largest, total, unknown = (f"{name}_{n}" for n in _MEASURED)
        scale, unit, codes, sums, scaled = (f"{name}_{n}" for n in _ROUNDED)
        product = scaled if self._biased else self.output
        steps = [
            ("Abs", [source], size),
            ("ReduceMax", [size, _AXIS], largest),
            # ReduceMax overlooks what is NaN: a sum does not
            ("ReduceSum", [size, _AXIS], total),
            ("Mul", [total, _NOTHING], unknown),
            ("Max", [largest, unknown, _LEAST], scale),
            ("Div", [source, scale], unit),
            ("QuantizeLinear", [unit, _STEP, _MIDDLE], codes),
            ("MatMulIntegerToFloat", [codes, name, _STEP, scales, _MIDDLE], sums),
            ("Mul", [sums, scale], product),
        ]
        if self._biased:
            tensors.append(TensorProto(name=bias, data_type=TensorProto.FLOAT, dims=[self.outputs]))
            steps.append(("Add", [scaled, bias], self.output))
        nodes = [
            helper.make_node(
                operator,
                inputs,
                [output],
                name=f"{output}_{operator}",
                domain=DOMAIN if operator == "MatMulIntegerToFloat" else "",
            )
            for operator, inputs, output in steps
        ]
        split, sizes = self.split()
        return [*nodes, *split], [*tensors, *sizes]

    def stored(self, held: Mapping[str, TensorProto], data: Path) -> dict[str, list[NDArray]]:
        codes = np.empty((self.inputs, self.outputs), np.int8)
        scales = np.empty(self.outputs, np.float32)
        biases = np.zeros(self.outputs, np.float32)
        start = 0
        for layer in self.layers:
            part = slice(start, start + layer.outputs)
            _round_again(layer, data, codes[:, part], scales[part])
            if layer.bias is not None:
                biases[part] = map_tensor(held[layer.bias], data)
            start = part.stop
        found: dict[str, list[NDArray]] = {self.name: [codes], f"{self.name}_scales": [scales]}
        return found | ({f"{self.name}_bias": [biases]} if self._biased else {})

    @property
    def _biased(self) -> bool:
        return any(layer.bias is not None for layer in self.layers)


def row_products(found: Iterable[Layer]) -> list[Product]:
    """What of these can become such products: those in float32."""
    groups: dict[str, list[Layer]] = {}
    for layer in found:
        if layer.scales.data_type == TensorProto.FLOAT:
            groups.setdefault(layer.source, []).append(layer)
    return [RowProduct(tuple(alike)) for alike in groups.values()]


def sums_exactly(flags: str) -> bool:
    """Whether a processor with these flags gives such products their exact sums."""
    return not _EXACT.isdisjoint(flags.split())


def _round_again(
    layer: Layer, data: Path, codes: NDArray[np.int8], scales: NDArray[np.float32]
) -> None:
    """Fill in a layer's codes [K, N] and scales [N], a scale for each channel."""
    old, steps = map_tensor(layer.codes, data), map_tensor(layer.scales, data)
    if steps.ndim == 1 and layer.bits == 8:
        codes[:], scales[:] = old, steps
        return
    shape = layer.inputs, layer.outputs
    count = max(2, _SLICE // layer.inputs // 2 * 2)  # even: a byte of int4 is not cut in two
    for start in range(0, layer.outputs, count):
        part = slice(start, min(layer.outputs, start + count))
        weights = columns_of(old, steps, shape, layer.bits == 4, part)
        largest = np.abs(weights).max(axis=0) / np.float32(LARGEST)
        scales[part] = np.maximum(largest, np.finfo(np.float32).tiny)
        codes[:, part] = np.rint(weights / scales[part])


def _constants() -> list[TensorProto]:
    return [
        numpy_helper.from_array(np.array([-1], np.int64), _AXIS),
        numpy_helper.from_array(np.array(0, np.float32), _NOTHING),
        numpy_helper.from_array(np.array(np.finfo(np.float32).tiny, np.float32), _LEAST),
        numpy_helper.from_array(np.array(1 / LARGEST, np.float32), _STEP),
        numpy_helper.from_array(np.array(128, np.uint8), _MIDDLE),
    ]
