"""Inputs and outputs of a piece, as the bundle, its graph and TensorRT's network know them."""

from collections.abc import Iterable
from typing import Any

import onnx
from mimo_edge.runtime.bundle.dtypes import DTYPES
from mimo_edge.runtime.bundle.errors import EngineError
from mimo_edge.runtime.bundle.manifest import TensorSpec

Ports = dict[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape (-1 = in a profile)

# the bundle's names of dtypes
TENSORRT_DTYPES = {dtype.tensorrt: dtype.name for dtype in DTYPES.values()}
ONNX_DTYPES: dict[int, str] = {
    onnx.TensorProto.DataType.Value(dtype.onnx): dtype.name for dtype in DTYPES.values()
}


def bundle_ports(ports: Iterable[TensorSpec], capacity: int) -> Ports:
    """What the bundle's manifest says, with the length of the cache in it."""
    sizes = {"capacity": capacity}
    return {
        p.name: (
            p.dtype,
            tuple(sizes.get(axis, -1) if isinstance(axis, str) else axis for axis in p.axes),
        )
        for p in ports
    }


def graph_ports(values: Iterable[onnx.ValueInfoProto]) -> Ports:
    """What the graph says that TensorRT is given."""
    ports = {}
    for value in values:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        ports[value.name] = (ONNX_DTYPES[kind.elem_type], shape)
    return ports


def network_ports(tensors: Iterable[Any]) -> Ports:
    """What TensorRT made of it."""
    return {
        t.name: (TENSORRT_DTYPES.get(t.dtype.name, t.dtype.name), tuple(t.shape)) for t in tensors
    }


def check_ports(name: str, side: str, wanted: Ports, found: Ports) -> None:
    """Raises EngineError that names the ports that differ."""
    differ = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
    if differ:
        raise EngineError(
            f"{name}: TensorRT's network has other {side}s: "
            + "; ".join(f"{n} is {found.get(n)}, not {wanted.get(n)}" for n in differ[:5])
        )
