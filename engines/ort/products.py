"""Products with quantised weights, as ONNX Runtime's own operator for them.

    DequantizeLinear(codes [K, N], scales) -> MatMul [-> Add of a bias]      becomes
    MatMulNBits(codes [N, K / block, block * bits / 8], scales [N, K / block], bias)

ONNX Runtime makes the same of it while it loads. Written down, a weight can be packed once for all
loads, and products that read the same input become one: the input is rounded to int8 once, and the
cores meet once. Their weights are stored one below the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import onnx
from mimo_edge.engines.ort.graph import DOMAIN, constants, rewrite, users
from mimo_edge.engines.weight_file import int4_columns, map_tensor
from numpy.typing import NDArray
from onnx import TensorProto, helper

EXACT, ROUNDED = 1, 4  # accuracy levels: what is read stays float32, or is rounded to int8
BITS: dict[int, int] = {TensorProto.INT4: 4, TensorProto.INT8: 8}
WIDEST = 128  # of a block; a channel is cut into such blocks, which share its scale
_SLICE = 1 << 25  # codes that are laid out at a time


@dataclass(frozen=True)
class Layer:
    """One product in the stored graph."""

    codes: TensorProto  # [K, N]
    scales: TensorProto  # [K / block, N], or [N]
    bias: str | None
    source: str  # what is multiplied
    output: str
    nodes: tuple[int, ...]  # places in the graph: the product, and the sum with its bias

    @property
    def inputs(self) -> int:
        return self.codes.dims[0]

    @property
    def outputs(self) -> int:
        return self.codes.dims[1]

    @property
    def bits(self) -> int:
        return BITS[self.codes.data_type]

    @property
    def bytes(self) -> int:
        """Of the codes."""
        return self.inputs * self.outputs * self.bits // 8

    @property
    def block(self) -> int:
        """Inputs that share a scale in the new form; 0 if it has none."""
        if len(self.scales.dims) == 2:
            return self.inputs // self.scales.dims[0]
        width = gcd(self.inputs, WIDEST)
        return width if width >= 16 else 0


@dataclass(frozen=True)
class Product(ABC):
    """Layers that read the same input, as one: their outputs lie one behind the other."""

    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """Of the new weight."""
        return self.layers[0].codes.name

    @property
    def inputs(self) -> int:
        """K"""
        return self.layers[0].inputs

    @property
    def outputs(self) -> int:
        """N"""
        return sum(layer.outputs for layer in self.layers)

    @property
    def source(self) -> str:
        return self.layers[0].source

    @property
    def output(self) -> str:
        """What the new nodes give: a layer's output, or all of them."""
        return self.layers[0].output if len(self.layers) == 1 else f"{self.name}_outputs"

    @abstractmethod
    def rewritten(
        self, held: Mapping[str, TensorProto]
    ) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        """The new nodes, and their constants, of which large ones have no data yet. `held` are
        the constants of the graph before."""

    @abstractmethod
    def stored(self, held: Mapping[str, TensorProto], data: Path) -> dict[str, list[NDArray]]:
        """The data of the constants that have none, in memory order, by name. Those of before lie
        in the file `data`."""

    def split(self) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        """What gives each layer its output, where there are several."""
        if len(self.layers) == 1:
            return [], []
        sizes = [layer.outputs for layer in self.layers]
        tensor = helper.make_tensor(f"{self.name}_sizes", TensorProto.INT64, [len(sizes)], sizes)
        outputs = [layer.output for layer in self.layers]
        name = f"{self.name}_split"
        node = helper.make_node("Split", [self.output, tensor.name], outputs, name=name, axis=-1)
        return [node], [tensor]


@dataclass(frozen=True)
class BlockProduct(Product):
    """As MatMulNBits. The layers are stored alike."""

    level: int  # EXACT or ROUNDED

    def rewritten(
        self, held: Mapping[str, TensorProto]
    ) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        name, first = self.name, self.layers[0]
        blocks = first.inputs // first.block
        shape = [self.outputs, blocks, first.block * first.bits // 8]
        kind, scales = first.scales.data_type, f"{name}_scales"
        tensors = [
            TensorProto(name=name, data_type=TensorProto.UINT8, dims=shape),
            TensorProto(name=scales, data_type=kind, dims=[self.outputs, blocks]),
        ]
        inputs = [self.source, name, scales]
        if first.bias is not None:
            kind = held[first.bias].data_type
            tensors.append(TensorProto(name=f"{name}_bias", data_type=kind, dims=[self.outputs]))
            inputs += ["", "", f"{name}_bias"]
        node = helper.make_node(
            "MatMulNBits",
            inputs,
            [self.output],
            name=f"{name}_product",
            domain=DOMAIN,
            K=first.inputs,
            N=self.outputs,
            bits=first.bits,
            block_size=first.block,
            accuracy_level=self.level,
        )
        nodes, sizes = self.split()
        return [node, *nodes], [*tensors, *sizes]

    def stored(self, held: Mapping[str, TensorProto], data: Path) -> dict[str, list[NDArray]]:
        scales = [_scales(layer, map_tensor(layer.scales, data)) for layer in self.layers]
        found: dict[str, list[NDArray]] = {
            self.name: list(self._codes(data)),
            f"{self.name}_scales": [np.concatenate(scales)],  # [N, K / block]
        }
        biases = [layer.bias for layer in self.layers if layer.bias is not None]
        if biases:
            found[f"{self.name}_bias"] = [map_tensor(held[bias], data) for bias in biases]
        return found

    def _codes(self, data: Path) -> Iterator[NDArray[np.uint8]]:
        """[N, K / block, block * bits / 8] in memory order, in slices of outputs."""
        for layer in self.layers:
            yield from _codes(layer, map_tensor(layer.codes, data))


def layers(model: onnx.ModelProto) -> list[Layer]:
    """Products with quantised weights, in the order of the graph."""
    held, readers = constants(model), users(model)
    dequantized = {node.output[0]: node for node in model.graph.node if _is_weight(node, held)}
    results = {value.name for value in model.graph.output}
    found = []
    for index, node in enumerate(model.graph.node):
        if node.op_type != "MatMul" or node.input[1] not in dequantized:
            continue
        weight = dequantized[node.input[1]]
        output, bias = node.output[0], None
        nodes: tuple[int, ...] = (index,)
        following = readers[output]
        if len(following) == 1 and output not in results:
            after = model.graph.node[following[0]]
            others = [name for name in after.input if name in held]
            width = list(held[weight.input[0]].dims[1:])
            if after.op_type == "Add" and [list(held[name].dims) for name in others] == [width]:
                bias, output, nodes = others[0], after.output[0], (index, following[0])
        codes, scales = (held[name] for name in weight.input)
        found.append(Layer(codes, scales, bias, node.input[0], output, nodes))
    return found


def block_products(found: Iterable[Layer], level: int) -> list[Product]:
    """What of these can become MatMulNBits."""
    groups: dict[tuple[str, int, int, bool], list[Layer]] = {}
    for layer in found:
        if layer.block:
            key = layer.source, layer.bits, layer.block, layer.bias is None
            groups.setdefault(key, []).append(layer)
    return [BlockProduct(tuple(alike), level) for alike in groups.values()]


def lower_products(model: onnx.ModelProto, found: list[Product]) -> None:
    """Put the new nodes in the place of the old ones. Weights get names and shapes, no data."""
    held = constants(model)
    at: dict[int, list[onnx.NodeProto]] = {}
    gone: set[int] = set()
    new: dict[str, TensorProto] = {}  # some constants serve several
    for product in found:
        places = [place for layer in product.layers for place in layer.nodes]
        gone.update(places)
        at[min(places)], tensors = product.rewritten(held)
        new |= {tensor.name: tensor for tensor in tensors}
    rewrite(model, at, gone, list(new.values()))


def _is_weight(node: onnx.NodeProto, held: dict[str, TensorProto]) -> bool:
    if node.op_type != "DequantizeLinear" or len(node.input) != 2:
        return False
    codes = held.get(node.input[0])
    return (
        codes is not None
        and node.input[1] in held
        and codes.data_type in BITS
        and len(codes.dims) == 2
    )


def _codes(layer: Layer, stored: NDArray) -> Iterator[NDArray[np.uint8]]:
    """Codes lie along the inputs, and count from 8 or 128 on."""
    step = max(2, _SLICE // layer.inputs // 2 * 2)
    middle = 1 << (layer.bits - 1)
    for start in range(0, layer.outputs, step):
        stop = min(layer.outputs, start + step)
        if layer.bits == 8:
            part = stored[:, start:stop].view(np.uint8) ^ np.uint8(middle)
            yield np.ascontiguousarray(part.T)
            continue
        shape = layer.inputs, layer.outputs
        pairs = int4_columns(stored, shape, start, stop) ^ np.uint8(middle)  # [K, n]
        yield np.ascontiguousarray((pairs[0::2] | pairs[1::2] << 4).T)


def _scales(layer: Layer, stored: NDArray) -> NDArray[np.floating]:
    if stored.ndim == 1:
        return np.repeat(stored[:, None], layer.inputs // layer.block, axis=1)
    return np.ascontiguousarray(stored.T)
