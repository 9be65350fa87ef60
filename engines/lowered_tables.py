"""Tables of int8 rows for TensorRT, which gathers no int8: the same bytes, read as int32 words.

    stored    Gather(codes int8 [rows, D], ids), Gather(scales, ids) -> DequantizeLinear
    lowered   Gather(words int32 [rows, D / 4], ids) -> four codes of each word -> times the scale

A table stays as small as it is stored, in the bundle's own file, and a step reads the rows that it
wants. With DequantizeLinear before the Gather, which TensorRT builds too, nothing says that a step
does not make floats of the whole table first: 1.2 GB of the text embedding.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from mimo_edge.runtime.bundle.errors import EngineError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CODES = 4  # in a word
_CONSTANTS: dict[str, NDArray[Any]] = {
    "zero": np.array(0, np.int32),
    "most": np.array((1 << 31) - 1, np.int32),
    "places": np.array([1, 1 << 8, 1 << 16, 1 << 24], np.int32),  # brings each code down
    "byte": np.array(256, np.int32),
    "half": np.array(128, np.int32),
    "tops": np.array([0, 0, 0, 128], np.int32),  # the sign of a word, in its last code
    "last": np.array([-1], np.int64),  # axis
}


def pack_tables(model: onnx.ModelProto) -> None:
    """Read every gathered int8 table as words, in place. Raises EngineError for rows that are not
    whole words."""
    graph = model.graph
    stored = {t.name: t for t in graph.initializer if t.data_type == TensorProto.INT8}
    gathers = {node.output[0]: node for node in graph.node if node.op_type == "Gather"}
    tables = {node.input[0] for node in gathers.values()} & stored.keys()
    if not tables:
        return
    float_type = {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in tables:
            continue
        rows = gathers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if rows is None or rows.input[0] not in tables:
            nodes.append(node)
        else:
            scales = gathers[node.input[1]]
            nodes += _unpacked(rows, node, float_type[scales.input[0]])
    constants = {_constant(name): value for name, value in _CONSTANTS.items()}
    for name in sorted(tables):
        constants[_width(name)] = np.array([stored[name].dims[1]], np.int64)
        _read_as_words(stored[name])
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())


def _read_as_words(table: TensorProto) -> None:
    """The same bytes as a table [rows, D / 4] of int32: ONNX stores both little-endian."""
    rows, width = table.dims
    if width % CODES:
        raise EngineError(
            f"{table.name} has rows of {width} int8 numbers, which is no multiple of {CODES}: "
            "TensorRT cannot gather them. Leave this table in floats, by an exception of the "
            "recipe."
        )
    table.data_type = TensorProto.INT32
    table.dims[:] = [rows, width // CODES]


def _unpacked(
    gather: onnx.NodeProto, dequantize: onnx.NodeProto, float_type: int
) -> Iterator[onnx.NodeProto]:
    """The codes of the gathered words, each as its float times its row's scale.

    All divisions are of numbers that are not negative, so that it is nothing to them whether an
    integer is rounded down or towards zero. A word's sign is taken away first and given back to
    its last code.
    """
    (table, ids), scales, rows = gather.input, dequantize.input[1], dequantize.output[0]
    outer = (table, ids, scales, rows, _width(table))

    def node(kind: str, output: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
        given = [_constant(i) if i in _CONSTANTS else local(i) for i in inputs]
        return helper.make_node(kind, given, [local(output)], name=local(output), **attributes)

    def local(name: str) -> str:
        return name if name in outer else f"{rows}_{name}"

    yield node("Gather", "words", table, ids, axis=0)
    yield node("Less", "negative", "words", "zero")
    yield node("Cast", "sign", "negative", to=TensorProto.INT32)
    yield node("Where", "lift", "negative", "most", "zero")  # and the sign: 2^31 is no int32
    yield node("Add", "lifted", "words", "lift")
    yield node("Add", "positive", "lifted", "sign")
    yield node("Unsqueeze", "spread", "positive", "last")
    yield node("Div", "moved", "spread", "places")
    yield node("Div", "beyond", "moved", "byte")
    yield node("Mul", "above", "beyond", "byte")
    yield node("Sub", "low", "moved", "above")
    yield node("Unsqueeze", "spread_sign", "sign", "last")
    yield node("Mul", "top", "spread_sign", "tops")
    yield node("Add", "bytes", "low", "top")  # 0 to 255
    yield node("Less", "is_positive", "bytes", "half")
    yield node("Sub", "lowered", "bytes", "byte")
    yield node("Where", "codes", "is_positive", "bytes", "lowered")
    yield node("Cast", "floats", "codes", to=float_type)
    yield node("Shape", "ids_shape", ids)
    yield node("Concat", "shape", "ids_shape", _width(table), axis=0)
    yield node("Reshape", "unscaled", "floats", "shape")
    yield node("Mul", rows, "unscaled", scales)


def _constant(name: str) -> str:
    return f"packed_{name}"


def _width(table: str) -> str:
    return f"{table}_width"
