"""Products with quantised weights, as ONNX Runtime's own operator for them.

    DequantizeLinear(codes [K, N], scales) -> MatMul [-> Add of a bias]      becomes
    MatMulNBits(codes [N, K / block, block * bits / 8], scales [N, K / block], bias)

ONNX Runtime makes the same of it while it loads. Written down, a weight can be packed once for all
loads, and products that read the same input become one: the input is rounded to int8 once, and the
cores meet once. Their weights are stored one below the other.
"""

from collections.abc import Iterator, Mapping
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
class Product:
    """Layers that read the same input, as one node."""

    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        return self.layers[0].codes.name

    @property
    def outputs(self) -> int:
        """N"""
        return sum(layer.outputs for layer in self.layers)

    def codes(self, data: Path) -> Iterator[NDArray[np.uint8]]:
        """[N, K / block, block * bits / 8] in memory order, in slices of outputs."""
        for layer in self.layers:
            yield from _codes(layer, map_tensor(layer.codes, data))

    def scales(self, data: Path) -> NDArray[np.floating]:
        """[N, K / block]"""
        found = [_scales(layer, map_tensor(layer.scales, data)) for layer in self.layers]
        return np.concatenate(found)


def products(model: onnx.ModelProto) -> list[Product]:
    """What can become MatMulNBits, in the order of the graph."""
    held, readers = constants(model), users(model)
    dequantized = {node.output[0]: node for node in model.graph.node if _is_weight(node, held)}
    results = {value.name for value in model.graph.output}
    groups: dict[tuple[str, int, int, bool], list[Layer]] = {}
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
        layer = Layer(codes, scales, bias, node.input[0], output, nodes)
        if layer.block:
            key = layer.source, layer.bits, layer.block, bias is None
            groups.setdefault(key, []).append(layer)
    return [Product(tuple(layers)) for layers in groups.values()]


def lower_products(model: onnx.ModelProto, found: list[Product], level: int) -> None:
    """Put the new nodes in the place of the old ones. Weights get names and shapes, no data."""
    held = constants(model)
    at: dict[int, list[onnx.NodeProto]] = {}
    gone: set[int] = set()
    new: list[TensorProto] = []
    for product in found:
        places = [place for layer in product.layers for place in layer.nodes]
        gone.update(places)
        at[min(places)], tensors = _rewritten(product, held, level)
        new += tensors
    rewrite(model, at, gone, new)


def stored(
    product: Product, held: Mapping[str, TensorProto], data: Path
) -> dict[str, list[NDArray]]:
    """The data of the new constants of a product, in memory order, by name.

    `held` are the constants of the graph before, whose data lie in the file `data`.
    """
    found: dict[str, list[NDArray]] = {
        product.name: list(product.codes(data)),
        f"{product.name}_scales": [product.scales(data)],
    }
    biases = [layer.bias for layer in product.layers if layer.bias is not None]
    if biases:
        found[f"{product.name}_bias"] = [map_tensor(held[bias], data) for bias in biases]
    return found


def _rewritten(
    product: Product, held: dict[str, TensorProto], level: int
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    layers, name = product.layers, product.name
    first = layers[0]
    blocks = first.inputs // first.block
    shape = [product.outputs, blocks, first.block * first.bits // 8]
    tensors = [
        TensorProto(name=name, data_type=TensorProto.UINT8, dims=shape),
        TensorProto(
            name=f"{name}_scales", data_type=first.scales.data_type, dims=[product.outputs, blocks]
        ),
    ]
    inputs = [first.source, name, f"{name}_scales"]
    if first.bias is not None:
        kind = held[first.bias].data_type
        tensors.append(TensorProto(name=f"{name}_bias", data_type=kind, dims=[product.outputs]))
        inputs += ["", "", f"{name}_bias"]
    one = len(layers) == 1
    output = first.output if one else f"{name}_outputs"
    node = helper.make_node(
        "MatMulNBits",
        inputs,
        [output],
        name=f"{name}_product",
        domain=DOMAIN,
        K=first.inputs,
        N=product.outputs,
        bits=first.bits,
        block_size=first.block,
        accuracy_level=level,
    )
    if one:
        return [node], tensors
    sizes = helper.make_tensor(
        f"{name}_sizes", TensorProto.INT64, [len(layers)], [layer.outputs for layer in layers]
    )
    split = helper.make_node(
        "Split",
        [output, sizes.name],
        [layer.output for layer in layers],
        name=f"{name}_split",
        axis=-1,
    )
    return [node, split], [*tensors, sizes]


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
