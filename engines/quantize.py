"""From a float bundle to a quantised one: graphs are rewritten, weights streamed. No torch.

Everything is written into `<bundle>.partial` and gets its name at the end, as in an export.
"""

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from mimo_edge.engines.calibration import Calibration
from mimo_edge.engines.components import COMPONENTS, EXACT, bare, component_of
from mimo_edge.engines.quantized_graph import (
    CODE_TYPES,
    matrices,
    quantize_graph,
)
from mimo_edge.engines.quantized_piece import Plan, is_dynamic, quantized, recorded, scaled
from mimo_edge.engines.recipe import Recipe, check_calibration
from mimo_edge.engines.resumed import write_pieces
from mimo_edge.engines.schemes import Floats, Read
from mimo_edge.engines.weigh import Part
from mimo_edge.engines.weight_file import (
    Stored,
    WeightFile,
    is_external,
    map_tensor,
    point_to,
)
from mimo_edge.engines.work import OnWork, Work, scaling_of, writing
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.data_files import by_data_file, data_file
from mimo_edge.runtime.bundle.errors import RecipeError
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.folders import check_output
from mimo_edge.runtime.bundle.manifest import (
    MANIFEST,
    FileSpec,
    PieceSpec,
)
from mimo_edge.runtime.bundle.unfinished import (
    finish,
    own_place,
    partial_folder,
)
from numpy.typing import NDArray


def quantize_bundle(
    bundle: Bundle,
    recipe: Recipe,
    output: Path,
    *,
    calibration: Calibration | None = None,
    resume: bool = False,
    force: bool = False,
    on_progress: OnWork = lambda *_: None,
) -> None:
    """Write the bundle that a recipe makes of a float one. Raises RecipeError, CalibrationError,
    InputError, ResourceError; leaves nothing behind on failure, or with `resume` what the next can
    go on with.
    """
    check_recipe(bundle, recipe)
    check_calibration(recipe, calibration)
    if calibration is not None:
        calibration.check_source(bundle.manifest.source, bundle.folder)
    place = check_output(output, [bundle.folder], force)
    plans = {piece: Plan.of(_read_graph(bundle, piece), recipe) for piece in bundle.manifest.pieces}
    costs = {piece: _cost(plan) for piece, plan in plans.items()}
    costs |= {scaling_of(piece): plan.scaling_cost for piece, plan in plans.items()}
    work = Work(costs, on_progress)
    made_by = [dataclasses.asdict(recipe), calibration and calibration.digest]
    key = json.dumps([bundle.identity, made_by, _version()])
    # those that share a data file have a part of what its first has
    held = sum(plans[group[0]].bytes for group in by_data_file(plans))
    with own_place(place), partial_folder(place, held, resume) as folder:
        check_output(output, [bundle.folder], force)  # another may have ended since

        def write(piece: str, data: WeightFile) -> tuple[PieceSpec, FileSpec]:
            plan = plans[piece]
            doing = "quantising" if plan.forms else "copying"
            on_write = partial(work.reach, piece, what=f"{doing} {piece}")
            plan = _calibrated(
                bundle, piece, plan, calibration, partial(work.reach, scaling_of(piece))
            )
            return _quantize_piece(bundle, recipe, piece, plan, data, on_write)

        def stages_of(piece: str) -> tuple[str, ...]:
            return scaling_of(piece), piece

        finished = write_pieces(folder, plans, lambda _: key, write, work, resume, stages_of)
        pieces = {piece: spec for piece, (spec, _) in finished.items()}
        files = {name: file for _, own in finished.values() for name, file in own.items()}
        taken = {n for spec in bundle.manifest.pieces.values() for n in (spec.file, spec.data)}
        for name in bundle.manifest.files.keys() - taken:
            shutil.copyfile(bundle.folder / name, folder / name)
            files[name] = hash_file(folder / name)
        manifest = dataclasses.replace(
            bundle.manifest,
            pieces=pieces,
            files=files,
            recipe=recipe.name,
            calibration=None if calibration is None else calibration.digest,
        )
        write_text(folder / MANIFEST, manifest.to_json())
        finish(folder, place)
    work.end()


def check_recipe(bundle: Bundle, recipe: Recipe) -> None:
    """Raises RecipeError for a recipe that cannot be made from this bundle."""
    own = {component: bundle.piece("backbone").compute for component in COMPONENTS}
    for piece in bundle.manifest.pieces:
        for component in bundle.piece(piece).weights.keys() & own.keys():
            own[component] = bundle.piece(piece).compute
    for component, part in recipe.components.items():
        if part.compute not in (None, own[component]) and component != EXACT:
            raise RecipeError(
                f"recipe {recipe.name} computes {component} in {part.compute}, the bundle has it "
                f"in {own[component]}. Export the checkpoint with --recipe {recipe.name}."
            )
    if not recipe.quantizes:
        raise RecipeError(
            f"recipe {recipe.name} quantises nothing. Export the checkpoint with --recipe "
            f"{recipe.name}, or choose another recipe."
        )


def bundle_parts(bundle: Bundle) -> Iterator[Part]:
    """The tensors of a float bundle that belong to a component, those that pieces share once."""
    known: set[tuple[str, str]] = set()
    for piece in bundle.manifest.pieces:
        model = _read_graph(bundle, piece)
        weights = matrices(model)
        for tensor in model.graph.initializer:
            component, own = component_of(tensor.name), (data_file(piece), bare(tensor.name))
            if component is not None and is_external(tensor) and own not in known:
                known.add(own)
                yield Part(component, int(np.prod(tensor.dims)), weights.get(tensor.name))


def _quantize_piece(
    bundle: Bundle,
    recipe: Recipe,
    piece: str,
    plan: Plan,
    written: WeightFile,
    on_write: Callable[[float], None],
) -> tuple[PieceSpec, FileSpec]:
    """Write the weights of a piece, and its graph beside them; returns the graph's file.

    `on_write` is told how much of the work is done, of 1.
    """
    spec, data = bundle.piece(piece), _data_file(bundle, piece)
    floats = {tensor.name: tensor for tensor in plan.model.graph.initializer}
    external = [name for name, tensor in floats.items() if is_external(tensor)]
    model = onnx.ModelProto()
    model.CopyFrom(plan.model)
    quantize_graph(model, plan.weights, plan.forms, plan.rounding)
    total, done = _cost(plan), 0.0

    def heard(each: float, count: int) -> None:
        nonlocal done
        done += each * count
        on_write(done / total)

    def tensors() -> Iterator[Stored]:
        for name in external:
            values = map_tensor(floats[name], data)
            each = _number_cost(plan, floats[name])
            if plan.forms.get(name) is None:
                yield Stored(name, [scaled(plan, name, values)])
                heard(each, values.size)
            else:
                read, on_code = _reader(values, plan.weights[name].table), partial(heard, each)
                yield from quantized(plan, name, read, values.dtype, on_code)

    point_to(model, written.path.name, written.write(tensors()))
    path = written.path.with_name(f"{piece}.onnx")
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))
    made = dataclasses.replace(
        spec,
        file=path.name,
        data=written.path.name,
        weights=recorded(plan, spec.weights),
        dynamic=is_dynamic(plan, recipe),
    )
    return made, hash_file(path)


def _cost(plan: Plan) -> float:
    """Of writing a piece."""
    tensors = [tensor for tensor in plan.model.graph.initializer if is_external(tensor)]
    return sum(_number_cost(plan, tensor) * int(np.prod(tensor.dims)) for tensor in tensors)


def _number_cost(plan: Plan, tensor: onnx.TensorProto) -> float:
    form, width = plan.forms.get(tensor.name), onnx.helper.tensor_dtype_to_np_dtype
    as_it_lies = form is None or plan.weights[tensor.name].table
    return writing(form, width(tensor.data_type).itemsize, as_it_lies)


def _calibrated(
    bundle: Bundle,
    piece: str,
    plan: Plan,
    calibration: Calibration | None,
    on_progress: Callable[[float], None],
) -> Plan:
    data = _data_file(bundle, piece)
    floats = {tensor.name: tensor for tensor in plan.model.graph.initializer}
    return plan.calibrated(
        calibration,
        lambda name: _reader(map_tensor(floats[name], data), plan.weights[name].table),
        bundle.model.head_dim,
        on_progress,
    )


def _reader(values: NDArray, table: bool) -> Read:
    """Rows of outputs, in float32, of a tensor in a float bundle."""

    def read(start: int, stop: int) -> Floats:
        part = values[start:stop] if table else values[:, start:stop].T
        return np.ascontiguousarray(part, np.float32)

    return read


def _read_graph(bundle: Bundle, piece: str) -> onnx.ModelProto:
    model = onnx.load(bundle.path(piece), load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_type in CODE_TYPES.values():
            raise RecipeError(
                f"{bundle.path(piece)} is quantised already ({tensor.name}). Quantise the float "
                "bundle, or export the checkpoint with --recipe."
            )
    return model


def _data_file(bundle: Bundle, piece: str) -> Path:
    return bundle.folder / bundle.piece(piece).data


def _version() -> str:
    return importlib.metadata.version("mimo-edge")
