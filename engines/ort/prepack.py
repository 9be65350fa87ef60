"""Packed weights, written once: ONNX Runtime arranges the weights of products for the processor.

Left to itself it does so at every load, into memory of its own. A model file may say where the
result lies on the disk instead; then it is mapped. ONNX Runtime still packs each weight as it
loads and compares, so what does not fit its version or the processor is never used, and the
unpacked weights have to stay in the file: of these no page is kept.

A weight is packed alone, by a model of one node that ONNX Runtime is asked to save. So the memory
that it takes is that of the largest weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from mimo_edge.engines.weight_file import Place, Stored, WeightFile, point_to
from numpy.typing import NDArray
from onnx import TensorProto, helper

PACKED = ("MatMulNBits", "MatMulIntegerToFloat")  # the operators
ENTRY = "prepacked_0"  # of an initializer's external data: key|offset;length;...
_KEEP = "session.save_external_prepacked_constant_initializers"
_FILE = "session.optimized_model_external_initializers_file_name"
_LEAST = "session.optimized_model_external_initializers_min_size_in_bytes"


@dataclass(frozen=True)
class Packed:
    """A packed weight: what ONNX Runtime knows it by, and its bytes."""

    key: str
    data: NDArray[np.uint8]


def pack(
    node: onnx.NodeProto,
    tensors: Mapping[str, TensorProto],
    parts: Mapping[str, Sequence[NDArray]],
    folder: Path,
) -> Packed | None:
    """The packed form of a node's weight. `tensors` are its constants, `parts` the data of those
    that have none; what is written on the way goes to `folder` and is removed.

    None if ONNX Runtime has no such form here.
    """
    single, given = folder / "pack.onnx", folder / "pack.onnx.data"
    saved, data = folder / "packed.onnx", folder / "packed.onnx.data"
    try:
        model = _model(node, tensors)
        with WeightFile(given) as file:
            external = (name for name in tensors if name in parts)
            places = file.write(Stored(name, list(parts[name])) for name in external)
        point_to(model, given.name, places)
        onnx.save(model, single)
        options = ort.SessionOptions()
        options.log_severity_level = 3  # it warns that the result is for this machine
        options.optimized_model_filepath = str(saved)
        options.intra_op_num_threads = 1
        for key, value in ((_KEEP, "1"), (_FILE, data.name), (_LEAST, "0")):
            options.add_session_config_entry(key, value)
        ort.InferenceSession(str(single), options, providers=["CPUExecutionProvider"])
        written = onnx.load(saved, load_external_data=False)
        weight = next(t for t in written.graph.initializer if t.name == node.input[1])
        entry = next((e.value for e in weight.external_data if e.key == ENTRY), None)
        if entry is None:
            return None
        name, _, place = entry.partition("|")
        offset, length, *_ = (int(part) for part in place.split(";"))
        return Packed(name, np.fromfile(data, np.uint8, length, offset=offset))
    finally:
        for path in (single, given, saved, data):
            path.unlink(missing_ok=True)


def point_to_packed(tensor: TensorProto, key: str, place: Place) -> None:
    """Let a weight that lies in a data file have its packed form in the same file."""
    offset, length = place
    tensor.external_data.add(key=ENTRY, value=f"{key}|{offset};{length};0")


def _model(node: onnx.NodeProto, tensors: Mapping[str, TensorProto]) -> onnx.ModelProto:
    """The node alone."""
    value = helper.make_tensor_value_info
    if node.op_type == "MatMulNBits":
        sizes = {a.name: a.i for a in node.attribute}
        inputs, outputs, kind = sizes["K"], sizes["N"], tensors[node.input[2]].data_type
        read = kind
    else:
        inputs, outputs = tensors[node.input[1]].dims
        read, kind = TensorProto.UINT8, TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "pack",
        [value(node.input[0], read, ["rows", inputs])],
        [value(node.output[0], kind, ["rows", outputs])],
        list(tensors.values()),
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(node.domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
