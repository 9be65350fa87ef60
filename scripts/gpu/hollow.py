"""A bundle without its weights: graphs of some MB that stand for one of many GB.

What a checkpoint holds is left out, and the place of every tensor is written down; constants that
no checkpoint has (Fourier matrices, filters) stay. With a recipe the graphs are those of the
quantised bundle, which need not exist. `fill` makes a bundle of it again.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from mimo_edge.engines.components import component_of
from mimo_edge.engines.quantized_graph import quantize_graph, scales_of
from mimo_edge.engines.quantized_piece import Plan, is_dynamic, recorded
from mimo_edge.engines.recipe import Recipe
from mimo_edge.engines.weight_file import ALIGNMENT, is_external, map_tensor, point_to
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.manifest import MANIFEST, FileSpec, PieceSpec
from mimo_edge.scripts.gpu.places import CODES, CONSTANTS, PLACES, Place, scale
from numpy.typing import NDArray

UNKNOWN = "0" * 64  # the hash of what is not there


def hollow(bundle: Bundle, folder: Path, recipe: Recipe | None = None) -> None:
    """Write a float bundle without its weights, as a recipe stores them, into a new folder."""
    folder.mkdir(parents=True)
    pieces: dict[str, PieceSpec] = {}
    files: dict[str, FileSpec] = {}
    places: list[Place] = []
    constants: dict[str, NDArray] = {}
    for piece, spec in bundle.manifest.pieces.items():
        model = onnx.load(bundle.path(piece), load_external_data=False)
        for tensor in model.graph.initializer:
            if is_external(tensor) and component_of(tensor.name) is None:
                values = map_tensor(tensor, bundle.folder / spec.data)
                constants[f"{piece}/{tensor.name}"] = np.array(values)
        if recipe is not None:
            plan = Plan.of(model, recipe)
            made = recorded(plan, spec.weights)
            spec = dataclasses.replace(spec, weights=made, dynamic=is_dynamic(plan, recipe))
            quantize_graph(model, plan.weights, plan.forms)
        found = _places(piece, model)
        point_to(model, spec.data, {place.name: (place.offset, place.bytes) for place in found})
        (folder / spec.file).write_bytes(model.SerializeToString(deterministic=True))
        files[spec.file] = hash_file(folder / spec.file)
        files[spec.data] = FileSpec(UNKNOWN, found[-1].offset + found[-1].bytes)
        pieces[piece] = spec
        places += found
    for name in bundle.manifest.files.keys() - files.keys():
        shutil.copyfile(bundle.folder / name, folder / name)
        files[name] = bundle.manifest.files[name]
    name = bundle.manifest.recipe if recipe is None else recipe.name
    manifest = dataclasses.replace(bundle.manifest, pieces=pieces, files=files, recipe=name)
    write_text(folder / MANIFEST, manifest.to_json())
    write_text(folder / PLACES, json.dumps([dataclasses.asdict(place) for place in places]))
    np.savez_compressed(folder / CONSTANTS, **constants)  # type: ignore[arg-type]


def _places(piece: str, model: onnx.ModelProto) -> list[Place]:
    """Every tensor that is not in the graph itself, end to end as `write_weights` lays them."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    scaled = {scales_of(name): name for name in tensors if _kind(tensors[name]) in CODES}
    places, position = [], 0
    for name, tensor in tensors.items():
        kind, shape = _kind(tensor), tuple(tensor.dims)
        if not (is_external(tensor) or kind in CODES or name in scaled):
            continue
        bits = 4 if kind == "int4" else 8 * np.dtype(kind).itemsize
        size = -(-int(np.prod(shape)) * bits // 8)
        offset = -(-position // ALIGNMENT) * ALIGNMENT
        codes = tensors.get(scaled.get(name, ""))
        spread = None if codes is None else scale(_kind(codes), tuple(codes.dims))
        places.append(Place(piece, name, kind, shape, offset, size, spread))
        position = offset + size
    return places


def _kind(tensor: onnx.TensorProto) -> str:
    """A number type as numpy calls it, if it has it."""
    name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    return "float32" if name == "float" else name
