"""From two checkpoints to a bundle: trace, stream, check, and only then give it its name.

Everything is written into `<bundle>.partial` (`runtime/bundle/unfinished.py`). It is removed when
the export fails, unless the caller asked to resume: then finished pieces stay and the next export
takes them over.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial as bind
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import torch
from mimo_edge.engines.calibration import Calibration
from mimo_edge.engines.quantized_graph import quantize_graph
from mimo_edge.engines.quantized_piece import Plan, is_dynamic, quantized, recorded, scaled
from mimo_edge.engines.recipe import Recipe, check_calibration, check_export, load
from mimo_edge.engines.resumed import keep_pieces, write_group
from mimo_edge.engines.weight_file import Stored, WeightFile, point_to
from mimo_edge.engines.work import OnWork, Work, writing
from mimo_edge.export.costs import HASHING, export_costs, stages_of, tracing, writing_of
from mimo_edge.export.piece import Port
from mimo_edge.export.sources import Sources
from mimo_edge.export.traced import TracedPiece
from mimo_edge.export.tracers import together, traced_pieces
from mimo_edge.export.tracing_share import TracingShare
from mimo_edge.export.weights import Region, WeightReader
from mimo_edge.runtime.bundle.data_files import by_data_file
from mimo_edge.runtime.bundle.dtypes import PRECISIONS
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.folders import check_output
from mimo_edge.runtime.bundle.manifest import (
    COMPONENTS,
    MANIFEST,
    SCHEMA,
    FileSpec,
    Manifest,
    PieceSpec,
    TensorSpec,
    WeightScheme,
)
from mimo_edge.runtime.bundle.unfinished import (
    Finished,
    finish,
    own_place,
    partial_folder,
)
from mimo_edge.runtime.chat.protocol import protocol

DTYPES: dict[str, torch.dtype] = {n: getattr(torch, d.name) for n, d in PRECISIONS.items()}
SCALE_DTYPES = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
}
EXACT = ("mel", "codebooks")  # components that stay in float32 in every bundle
TOOLS = ("mimo-edge", "torch", "onnx", "onnxscript", "onnx-ir")
# what makes a piece, beside the tools
CODE = (
    "export/*.py",
    "mimo_ref/*.py",
    "engines/quantized_*.py",
    "engines/resumed.py",
    "engines/scaling.py",
    "engines/schemes.py",
    "engines/weight_file.py",
    "runtime/bundle/data_files.py",
    "runtime/bundle/stream_sizes.py",
)


def export_bundle(
    sources: Sources,
    output: Path,
    dtype_name: str,
    recipe: Recipe | None = None,
    *,
    calibration: Calibration | None = None,
    resume: bool = False,
    force: bool = False,
    speech: bool = False,
    on_progress: OnWork = lambda *_: None,
) -> None:
    """Write a bundle, computed in `dtype_name` and stored as a recipe says, if one is given.

    A recipe may need a `calibration` of the same checkpoints.
    Raises InputError, ResourceError; leaves nothing behind on failure, or with `resume` what the
    next export can go on with. `force` replaces a bundle that is there, `speech` exports what makes
    speech even of a model that was trained to listen only.
    Nobody else can write the bundle as long as it takes.
    """
    recipe = recipe or load(dtype_name)
    check_export(recipe, dtype_name)
    check_calibration(recipe, calibration)
    dtype = DTYPES[dtype_name]
    speech = sources.exports_speech(speech)
    read = [p.parent for path in sources.files() for p in (path, path.resolve())]
    output = check_output(output, read, force)
    held = sources.stored_bytes(dtype_name, recipe, speech)
    with own_place(output), partial_folder(output, held, resume) as partial:
        check_output(output, read, force)  # another export may have ended since
        pieces = sources.pieces(dtype)
        names = pieces.names(speech)
        costs = export_costs(sources, recipe, dtype_name, names)
        work = Work(costs, on_progress)
        source = sources.fingerprint(lambda done, all: work.reach(HASHING, done / all))
        if calibration is not None:
            calibration.check_source(source, sources.tensors[0].folder)
        made_by = [dataclasses.asdict(recipe), calibration and calibration.digest]
        key = json.dumps([source, dtype_name, made_by, tool_versions(), _code_digest()])
        groups = by_data_file(names)
        finished: dict[str, Finished] = {}
        if resume:
            finished = keep_pieces(partial, groups, lambda _: key, work, stages_of)
        left = [name for name in names if name not in finished]
        share = TracingShare({name: costs[tracing(name)] for name in left})
        for name in left:
            work.watch(tracing(name), bind(share.part, name))

        def begun(name: str) -> None:
            work.say(tracing(name))

        def write(
            ready: Mapping[str, TracedPiece], name: str, data: WeightFile
        ) -> tuple[PieceSpec, FileSpec]:
            on_write = bind(work.reach, writing_of(name))
            return _write_piece(
                sources, data, name, ready[name], dtype_name, recipe, calibration, on_write
            )

        with traced_pieces(pieces, left, begun, share.hear) as traced:
            for ready in together(traced, groups):
                finished |= write_group(partial, list(ready), key, bind(write, ready))
        files = {file: spec for name in names for file, spec in finished[name][1].items()}
        for path in sources.text_files:
            shutil.copyfile(path, partial / path.name)
            files[path.name] = hash_file(partial / path.name)
        states = PRECISIONS[dtype_name].name
        manifest = Manifest(
            schema=SCHEMA,
            architecture=sources.language_model.architecture,
            activation_dtype=states,
            cache_dtype=states,
            model=sources.model_spec(),
            pieces={name: finished[name][0] for name in names},
            files=files,
            tools=tool_versions(),
            source=source,
            chat=protocol(sources.text_tokenizer, sources.member),
            recipe=recipe.name,
            calibration=None if calibration is None else calibration.digest,
        )
        write_text(partial / MANIFEST, manifest.to_json())
        finish(partial, output)
    work.end()


def tool_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in TOOLS}


def _code_digest() -> str:
    """Over the code that makes a piece."""
    digest, root = hashlib.sha256(), Path(__file__).parent.parent
    for path in sorted(path for pattern in CODE for path in root.glob(pattern)):
        digest.update(f"{path.name} {hash_file(path).sha256}\n".encode())
    return digest.hexdigest()


def _write_piece(
    sources: Sources,
    data: WeightFile,
    name: str,
    traced: TracedPiece,
    dtype_name: str,
    recipe: Recipe,
    calibration: Calibration | None,
    on_write: Callable[[float], None],
) -> tuple[PieceSpec, FileSpec]:
    """Its weights, stored as the recipe says, and its graph beside them; the graph's file.

    `on_write` is told how much of the work is done, of 1.
    """
    proto = onnx.ModelProto.FromString(traced.graph)
    reader = WeightReader(sources.tensors, traced)
    region_of = {region.name: region for region in traced.regions}
    plan = Plan.of(proto, recipe).calibrated(
        calibration, lambda name: reader.reader(region_of[name]), sources.model_spec().head_dim
    )
    quantize_graph(proto, plan.weights, plan.forms, plan.rounding)
    stored = _stored(reader, traced.regions, plan, on_write)
    point_to(proto, data.path.name, data.write(stored))
    path = data.path.with_name(f"{name}.onnx")
    path.write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    spec = PieceSpec(
        file=path.name,
        data=data.path.name,
        compute="fp32" if name == "mel" else dtype_name,
        weights=recorded(
            plan,
            {
                component: WeightScheme("fp32" if component in EXACT else dtype_name)
                for component in COMPONENTS[name]
            },
        ),
        inputs=_ports(traced.inputs),
        outputs=_ports(traced.outputs),
        dynamic=is_dynamic(plan, recipe),
    )
    return spec, hash_file(path)


def _stored(
    reader: WeightReader, regions: list[Region], plan: Plan, on_write: Callable[[float], None]
) -> Iterator[Stored]:
    """The data of every tensor, quantised where the plan says so."""
    each = {region.name: _cost(region, plan) for region in regions}  # of a number
    total = sum(each[region.name] * region.numbers for region in regions)
    done = 0.0

    def heard(name: str, numbers: float) -> None:
        nonlocal done
        done += each[name] * numbers
        on_write(done / total)

    for region in regions:
        if plan.forms.get(region.name) is None:
            width = region.dtype.itemsize

            def copied(count: int, name: str = region.name, width: int = width) -> None:
                heard(name, count / width)

            parts = reader.parts(region, copied)
            if region.name in plan.scaling.factors:
                (whole,) = parts  # a vector
                floats = whole.view(SCALE_DTYPES[region.dtype])
                parts = iter([scaled(plan, region.name, floats)])
            yield Stored(region.name, parts)
        else:
            read, on_code = reader.reader(region), bind(heard, region.name)
            yield from quantized(plan, region.name, read, SCALE_DTYPES[region.dtype], on_code)


def _cost(region: Region, plan: Plan) -> float:
    """Of each number of a tensor that is written."""
    weight = plan.weights.get(region.name)
    as_it_lies = not region.transposed if weight is None else weight.table
    return writing(plan.forms.get(region.name), region.dtype.itemsize, as_it_lies)


def _ports(ports: tuple[Port, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(p.name, str(p.dtype).removeprefix("torch."), p.axes) for p in ports)
