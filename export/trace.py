"""From a piece to an ONNX graph without weights.

Tracing happens on fake tensors: nothing of the checkpoint is in memory, whatever its size.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import onnx_ir as ir
import torch
from mimo_edge.export.operators import OPSET, traced
from mimo_edge.export.piece import Piece, Port
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim
from torch.onnx._internal.exporter import _core as onnx_exporter
from torch.onnx._internal.exporter._registration import ONNXRegistry

for _name in ("torch.onnx", "onnxscript", "onnx_ir"):  # they warn of what is meant here
    logging.getLogger(_name).setLevel(logging.ERROR)


def trace(build: Callable[[], Piece]) -> tuple[Piece, ir.Model]:
    """Build a piece on fake tensors and trace it. Initializers have names and shapes, no data."""
    with FakeTensorMode(), torch.no_grad(), traced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        piece = build()
        piece.module.eval().requires_grad_(False)
        inputs = tuple(port.example() for port in piece.inputs)
        program = torch.export.export(
            piece.module, inputs, dynamic_shapes=_dynamic_shapes(piece), strict=False
        )
        exported = onnx_exporter.export(  # torch.onnx.export makes a registry each time
            program,
            registry=_registry(),
            opset_version=OPSET,
            optimize=False,  # the optimiser would want real tensors
            input_names=[port.name for port in piece.inputs],
            output_names=[port.name for port in piece.outputs],
            verbose=False,
        )
    model = exported.model
    _forget_weights(model)
    _name_axes(model, piece)
    _strip(model)
    model.graph.name = piece.name
    model.graph.doc_string = _purpose(piece)
    return piece, model


@cache
def _registry() -> ONNXRegistry:
    """How each operator of torch is written in ONNX: half a second to gather, for every piece."""
    return ONNXRegistry.from_torchlib(opset_version=OPSET)


def _forget_weights(model: ir.Model) -> None:
    """Parameters and buffers are fake and lose what stands for their data; the module's small
    constants (`torch.tensor` in a forward) are real."""
    for initializer in model.graph.initializers.values():
        if isinstance(getattr(initializer.const_value, "raw", None), FakeTensor):
            initializer.const_value = None


def _dynamic_shapes(piece: Piece) -> tuple:
    """What torch.export wants: a tuple like forward's parameters, `*caches` being one of them."""

    def shape(port: Port) -> dict[int, Any]:
        return {i: Dim.DYNAMIC for i, axis in enumerate(port.axes) if isinstance(axis, str)}

    shapes = tuple(shape(port) for port in piece.inputs)
    fixed = piece.module.forward.__code__.co_argcount - 1  # parameters before *caches
    return shapes if len(shapes) == fixed else (*shapes[:fixed], shapes[fixed:])


def _name_axes(model: ir.Model, piece: Piece) -> None:
    """Give symbolic axes the names that the ports give them, everywhere in the graph."""
    names: dict[str, str] = {}
    values = [*zip(model.graph.inputs, piece.inputs, strict=True)]
    for value, port in values:
        for dim, axis in zip(value.shape or (), port.axes, strict=True):
            if isinstance(dim, ir.SymbolicDim) and isinstance(axis, str):
                names[str(dim.value)] = axis
    for node in model.graph.all_nodes():
        for value in node.outputs:
            _rename_dims(value, names)
    for value in model.graph.inputs:
        _rename_dims(value, names)
    for value, port in zip(model.graph.outputs, piece.outputs, strict=True):
        value.shape = ir.Shape(port.axes)


def _rename_dims(value: ir.Value, names: dict[str, str]) -> None:
    if value.shape is not None:
        value.shape = ir.Shape(
            names.get(str(d.value)) if isinstance(d, ir.SymbolicDim) else d for d in value.shape
        )


def _purpose(piece: Piece) -> str:
    """What the piece is for: the first line of the module that it is written in."""
    written = sys.modules[type(piece.module).__module__].__doc__ or ""
    return written.split("\n", 1)[0]


def _strip(model: ir.Model) -> None:
    """Drop stack traces and file names, which the exporter leaves in the metadata."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
