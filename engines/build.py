"""Engines of a whole bundle: build what is not there yet, and finish with engine.json."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from mimo_edge.engines.builder import build, builder_flags
from mimo_edge.engines.engine_store import EngineStore
from mimo_edge.engines.lowering import lower
from mimo_edge.engines.planner import estimate
from mimo_edge.engines.ports import bundle_ports, check_ports
from mimo_edge.engines.profiles import Limits, profiles
from mimo_edge.engines.recipe import BundleRecipe
from mimo_edge.engines.target import Target
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import EngineManifest, Identity, folder_of
from mimo_edge.runtime.bundle.errors import ResourceError
from mimo_edge.runtime.bundle.manifest import PIECES, FileSpec

OnProgress = Callable[[str, str, int, int], None]  # piece, phase, steps done, steps in all


def identity_of(
    bundle: Bundle, recipe: BundleRecipe, target: Target, trt: Any, limits: Limits
) -> Identity:
    """What the engines depend on. `trt` is the TensorRT module that builds them."""
    ranges = {piece: profiles(bundle, piece, limits) for piece in PIECES}
    return Identity(
        bundle=bundle.identity,
        graphs={piece: _graph_digest(bundle, piece, limits.max_seq) for piece in PIECES},
        recipe=recipe.name,
        precision=dict(recipe.precision),
        product=target.product,
        version=trt.__version__,
        capabilities=target.capabilities,
        max_seq=limits.max_seq,
        max_batch=limits.max_batch,
        profiles=json.loads(json.dumps(ranges)),  # lists, as they will be read back
        flags=builder_flags(trt, target),
    )


def build_engines(
    bundle: Bundle,
    identity: Identity,
    target: Target,
    trt: Any,
    limits: Limits,
    on_progress: OnProgress = lambda *_: None,
) -> tuple[Path, EngineManifest]:
    """Build every piece of a bundle. Raises EngineError, ResourceError; finished plans stay."""
    store = EngineStore(folder_of(bundle, identity), identity)
    found = {piece: store.kept(piece) for piece in PIECES}
    _check_disk(store.folder, bundle, [p for p, kept in found.items() if kept is None])
    plans: dict[str, FileSpec] = {}
    seconds: dict[str, float] = {}
    for piece, kept in found.items():
        if kept is not None:
            plans[piece], seconds[piece] = kept
            on_progress(piece, "kept", 1, 1)
        else:
            plans[piece], seconds[piece] = _build_piece(
                bundle, piece, store, target, trt, limits, on_progress
            )
    return store.folder, store.seal(plans, seconds)


def _build_piece(
    bundle: Bundle,
    piece: str,
    store: EngineStore,
    target: Target,
    trt: Any,
    limits: Limits,
    on_progress: OnProgress,
) -> tuple[FileSpec, float]:
    """Build one plan and put it on disk; it is in memory no longer than this takes."""

    def heard(phase: str, done: int, total: int) -> None:
        on_progress(piece, phase, done, total)

    store.begin(piece)
    on_progress(piece, "parsing", 0, 0)
    path, spec = bundle.path(piece), bundle.piece(piece)
    ranges = profiles(bundle, piece, limits)
    made = build(trt, target, path, ranges, limits.max_seq, heard, store.timing_cache())
    check_ports(path.name, "input", bundle_ports(spec.inputs, limits.max_seq), made.inputs)
    check_ports(path.name, "output", bundle_ports(spec.outputs, limits.max_seq), made.outputs)
    log = "\n".join(made.log.lines) + "\n"
    finished = store.finish(piece, made.plan, log, made.seconds)
    if made.timing_cache is not None:
        store.keep_timing_cache(made.timing_cache)
    return finished, made.seconds


def _check_disk(folder: Path, bundle: Bundle, pieces: list[str]) -> None:
    needed = sum(e.engine_bytes for e in estimate(bundle) if e.piece in pieces)
    place = next(p for p in (folder, *folder.parents) if p.exists())  # it is made later
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ResourceError(
            f"{place} has {free / 1e9:.1f} GB free, the engines need about {needed / 1e9:.1f} GB. "
            "Free some, or export a smaller precision."
        )


def _graph_digest(bundle: Bundle, piece: str, capacity: int) -> str:
    """Over the graph as TensorRT gets it, lowering included, and over its weights."""
    path = bundle.path(piece)
    model = lower(onnx.load(path, load_external_data=False), capacity)
    weights = bundle.manifest.files[f"{path.name}.data"].sha256
    content = model.SerializeToString(deterministic=True) + weights.encode()
    return hashlib.sha256(content).hexdigest()
