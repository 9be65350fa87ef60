"""What a graph file says of itself: its ports, and the files that its tensors lie in.

An ONNX file is a protocol buffer. Only the few fields that a check needs are read, so neither onnx
nor a backend is, and no weight is touched.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mimo_edge.runtime.bundle.files import LARGEST_DOCUMENT
from mimo_edge.runtime.bundle.manifest import TensorSpec

# message -> its fields that hold messages in which a tensor can be; numbers are those of onnx.proto
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_GRAPH, _INPUT, _OUTPUT, _EXTERNAL = 7, 11, 12, 13
_INITIALIZER, _DIMS, _NAME = 5, 1, 8
_DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"},
    **{9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"},
}
_PACKED = "prepacked_"  # how ONNX Runtime names where packed weights lie
_OTHER_PROGRAM = b"EPContext"  # a node that has a provider load a file of its own


@dataclass(frozen=True)
class GraphFile:
    """The ports of a graph, and the names of the files that hold its weights."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    locations: frozenset[str]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file of weights: its shape, its size there, and that of its packed form."""

    name: str
    shape: tuple[int, ...]
    bytes: int
    packed: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


def read_graph(path: Path) -> GraphFile:
    """Raises ValueError for a file that is no ONNX graph without weights."""
    if path.stat().st_size > LARGEST_DOCUMENT:
        raise ValueError(f"it has more than {LARGEST_DOCUMENT >> 20} MiB, so weights are in it")
    whole = path.read_bytes()
    if _OTHER_PROGRAM in whole:
        raise ValueError("it has a node that loads a file which no check has seen")
    content = memoryview(whole)
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for graph in _messages(content, _GRAPH):
        inputs += map(_port, _messages(graph, _INPUT))
        outputs += map(_port, _messages(graph, _OUTPUT))
    return GraphFile(tuple(inputs), tuple(outputs), frozenset(_locations(content, "model")))


def stored_tensors(path: Path) -> list[StoredTensor]:
    """The tensors of a graph whose numbers lie in a file beside it. Raises ValueError for a file
    that is no ONNX graph."""
    found = []
    for graph in _messages(memoryview(path.read_bytes()), _GRAPH):
        for tensor in _messages(graph, _INITIALIZER):
            entries = {_text(entry, 1): _text(entry, 2) for entry in _messages(tensor, _EXTERNAL)}
            if "location" in entries:
                size = int(entries.get("length", 0))
                packed = sum(_packed(v) for k, v in entries.items() if k.startswith(_PACKED))
                found.append(StoredTensor(_text(tensor, _NAME), _dims(tensor), size, packed))
    return found


def _packed(entry: str) -> int:
    """Bytes of packed weights: key|offset;length;sum|offset;length;sum..."""
    return sum(int(place.partition(";")[2].partition(";")[0]) for place in entry.split("|")[1:])


def _dims(tensor: memoryview) -> tuple[int, ...]:
    """Repeated, or packed into one field: writers differ."""
    dims: list[int] = []
    for number, value in _fields(tensor):
        if number == _DIMS and isinstance(value, int):
            dims.append(value)
        elif number == _DIMS and not isinstance(value, int):
            at = 0
            while at < len(value):
                size, at = _varint(value, at)
                dims.append(size)
    return tuple(dims)


def _locations(message: memoryview, kind: str) -> Iterator[str]:
    if kind == "tensor":
        for entry in _messages(message, _EXTERNAL):
            if _text(entry, 1) == "location":
                yield _text(entry, 2)
        return
    for number, value in _fields(message):
        inside = _INSIDE[kind].get(number)
        # most nodes hold no tensor: a search for the word is faster than reading each of them
        if inside and not isinstance(value, int) and b"location" in bytes(value):
            yield from _locations(value, inside)


def _port(value_info: memoryview) -> TensorSpec:
    axes: list[str | int] = []
    dtype = 0
    for described in _messages(value_info, 2):  # type
        for tensor in _messages(described, 1):
            dtype = next((v for n, v in _fields(tensor) if n == 1 and isinstance(v, int)), 0)
            for shape in _messages(tensor, 2):
                axes += map(_axis, _messages(shape, 1))
    return TensorSpec(_text(value_info, 1), _DTYPES.get(dtype, f"type {dtype}"), tuple(axes))


def _axis(dimension: memoryview) -> str | int:
    size = next((v for n, v in _fields(dimension) if n == 1 and isinstance(v, int)), None)
    return _text(dimension, 2) if size is None else size


def _text(message: memoryview, number: int) -> str:
    return "".join(bytes(value).decode("utf-8") for value in _messages(message, number))


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    for found, value in _fields(message):
        if found == number and not isinstance(value, int):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field: a whole number, or the bytes of whatever else it is."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("it is no ONNX file")
        if at + size > end:
            raise ValueError("it is no whole ONNX file")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("it is no whole ONNX file")
