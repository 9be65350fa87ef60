"""A bundle without its weights: graphs of some MB that stand for one of many GB.

What a checkpoint holds is left out, and the place of every tensor is written down; constants that
no checkpoint has (Fourier matrices, filters) stay. With a recipe the graphs are those of the
quantised bundle, which need not exist. `fill` makes a bundle of it again.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from mimo_edge.engines.components import bare, component_of
from mimo_edge.engines.quantized_graph import quantize_graph, scales_of
from mimo_edge.engines.quantized_piece import Plan, is_dynamic, recorded
from mimo_edge.engines.recipe import Recipe
from mimo_edge.engines.weight_file import ALIGNMENT, is_external, map_tensor, point_to
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.data_files import data_file
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
    written: dict[str, dict[str, Place]] = {}  # data file -> what lies in it, by bare names
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
        spec = dataclasses.replace(spec, data=data_file(piece))
        held = written.setdefault(spec.data, {})
        point_to(model, spec.data, _places(piece, model, held))
        (folder / spec.file).write_bytes(model.SerializeToString(deterministic=True))
        files[spec.file] = hash_file(folder / spec.file)
        files[spec.data] = FileSpec(UNKNOWN, _end(held))
        pieces[piece] = spec
    taken = {n for spec in bundle.manifest.pieces.values() for n in (spec.file, spec.data)}
    for name in bundle.manifest.files.keys() - taken:
        shutil.copyfile(bundle.folder / name, folder / name)
        files[name] = bundle.manifest.files[name]
    name = bundle.manifest.recipe if recipe is None else recipe.name
    manifest = dataclasses.replace(bundle.manifest, pieces=pieces, files=files, recipe=name)
    write_text(folder / MANIFEST, manifest.to_json())
    places = [place for held in written.values() for place in held.values()]
    write_text(folder / PLACES, json.dumps([dataclasses.asdict(place) for place in places]))
    np.savez_compressed(folder / CONSTANTS, **constants)  # type: ignore[arg-type]


def _places(
    piece: str, model: onnx.ModelProto, held: dict[str, Place]
) -> dict[str, tuple[int, int]]:
    """Offset and size of every tensor that is not in the graph itself, as a `WeightFile` lays
    them: after what is `held` already, of which graphs before this one have some."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    scaled = {scales_of(name): name for name in tensors if _kind(tensors[name]) in CODES}
    places, new, position = {}, {}, _end(held)
    for name, tensor in tensors.items():
        kind, shape = _kind(tensor), tuple(tensor.dims)
        if not (is_external(tensor) or kind in CODES or name in scaled):
            continue
        bits = 4 if kind == "int4" else 8 * np.dtype(kind).itemsize
        size = -(-int(np.prod(shape)) * bits // 8)
        offset = -(-position // ALIGNMENT) * ALIGNMENT
        codes = tensors.get(scaled.get(name, ""))
        spread = None if codes is None else scale(_kind(codes), tuple(codes.dims))
        place = Place(piece, name, kind, shape, offset, size, spread)
        known = held.get(bare(name))
        if known is not None and (known.dtype, known.shape) == (kind, shape):
            place = known
        else:
            new[bare(name)] = place
            position = offset + size
        places[name] = place.offset, place.bytes
    held.update(new)
    return places


def _end(held: Mapping[str, Place]) -> int:
    """Where a data file ends that holds these."""
    return max((place.offset + place.bytes for place in held.values()), default=0)


def _kind(tensor: onnx.TensorProto) -> str:
    """A number type as numpy calls it, if it has it."""
    name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    return "float32" if name == "float" else name
