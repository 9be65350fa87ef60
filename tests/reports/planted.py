"""Faults to plant: in a copy of a bundle, or in the reference that stands in for a build."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.manifest import MANIFEST

Weights = np.ndarray


class Planted:
    """A copy of a bundle that opens as a whole one: its manifest knows what was changed."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(bundle, folder, copy_function=os.link)
        self._spec = Bundle.open(bundle, verify=False).manifest.pieces

    def weight(self, piece: str, name: str, change: Callable[[Weights], Weights]) -> None:
        """Change one stored tensor, which keeps its size."""
        graph = onnx.load(self.folder / self._spec[piece].file, load_external_data=False).graph
        tensor = next(t for t in graph.initializer if t.name == name)
        where = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        path = self._own(self._spec[piece].data)
        stored = np.memmap(path, dtype, "r+", int(where["offset"]), tuple(tensor.dims))
        stored[:] = change(np.array(stored)).reshape(stored.shape)
        stored.flush()
        self._sign(path)

    def graph(self, piece: str, change: Callable[[onnx.GraphProto], None]) -> None:
        """Change a graph."""
        path = self._own(self._spec[piece].file)
        model = onnx.load(path, load_external_data=False)
        change(model.graph)
        path.write_bytes(model.SerializeToString())
        self._sign(path)

    def file(self, name: str, change: Callable[[str], str]) -> None:
        """Change a text file."""
        path = self._own(name)
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
        self._sign(path)

    def _own(self, name: str) -> Path:
        """A file of this copy alone: until now it is the same as the other bundle's."""
        path = self.folder / name
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        return path

    def _sign(self, path: Path) -> None:
        manifest = self._own(MANIFEST)
        raw = json.loads(manifest.read_text(encoding="utf-8"))
        spec = hash_file(path)
        raw["files"][path.name] = {"sha256": spec.sha256, "bytes": spec.bytes}
        write_text(manifest, json.dumps(raw))


def late_positions(graph: onnx.GraphProto) -> None:
    """Past lengths are one too many, but not in the prefill, where they are 0."""
    make = onnx.helper.make_node
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == "past_lengths":
                node.input[place] = "past_late"
    one = onnx.TensorProto.INT64
    nodes = (
        make("Sign", ["past_lengths"], ["past_sign"]),
        make("Cast", ["past_sign"], ["past_one"], to=one),
        make("Add", ["past_lengths", "past_one"], ["past_late"]),
    )
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)


def other_merges(text: str) -> str:
    """A text tokenizer that was trained with fewer merges, and has the same ids."""
    raw = json.loads(text)
    raw["model"]["merges"] = raw["model"]["merges"][: len(raw["model"]["merges"]) // 2]
    return json.dumps(raw)
