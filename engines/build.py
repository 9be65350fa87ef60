"""Engines of a whole bundle: build what is not there yet, and finish with engine.json."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from mimo_edge.engines.builder import build, builder_flags
from mimo_edge.engines.bundle_recipe import BundleRecipe
from mimo_edge.engines.engine_store import EngineStore
from mimo_edge.engines.lowering import lower
from mimo_edge.engines.planner import estimate
from mimo_edge.engines.ports import bundle_ports, check_ports
from mimo_edge.engines.profiles import Limits, profiles
from mimo_edge.engines.target import Target
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import (
    EngineManifest,
    Identity,
    PieceIdentity,
    PlanSpec,
    piece_hashes,
)
from mimo_edge.runtime.bundle.engine_folders import INSIDE, cache_folder, home_of, name_of
from mimo_edge.runtime.bundle.errors import InputError, ResourceError
from mimo_edge.runtime.bundle.manifest import MANIFEST, PIECES

OnProgress = Callable[[str, str, int, int], None]  # piece, phase, steps done, steps in all


def identity_of(
    bundle: Bundle, recipe: BundleRecipe, target: Target, trt: Any, limits: Limits
) -> Identity:
    """What the engines depend on. `trt` is the TensorRT module that builds them."""

    def piece_identity(piece: str) -> PieceIdentity:
        source, weights = piece_hashes(bundle, piece)
        return PieceIdentity(
            source=source,
            weights=weights,
            graph=_graph_digest(bundle, piece, limits.max_seq),
            precision=recipe.precision[piece],
            profiles=profiles(bundle, piece, limits),
        )

    return Identity(
        product=target.product,
        version=trt.__version__,
        capabilities=target.capabilities,
        flags=builder_flags(trt, target),
        recipe=recipe.name,
        max_seq=limits.max_seq,
        max_batch=limits.max_batch,
        pieces={piece: piece_identity(piece) for piece in PIECES},
    )


def engine_home(bundle: Bundle, root: Path | None = None, in_bundle: bool = False) -> Path:
    """Where the engines of a bundle go: see `engine_folders`. Raises InputError for a place in a
    bundle, unless `in_bundle` asks for the one that it has for them."""
    if in_bundle:
        if root is not None:
            raise InputError("name a folder for the engines, or have them in the bundle, not both")
        return bundle.folder / INSIDE
    place = (root or cache_folder()).resolve()
    for folder in (place, *place.parents):
        if (folder / MANIFEST).is_file():
            raise InputError(
                f"{place} lies in the bundle {folder}. Engines are programs and do not belong to "
                "a bundle, which is data: name another folder. If the two are to be carried "
                "together, say --in-bundle; who runs them has to trust them then."
            )
    return home_of(bundle, root)


def build_engines(
    bundle: Bundle,
    identity: Identity,
    target: Target,
    trt: Any,
    limits: Limits,
    home: Path,
    on_progress: OnProgress = lambda *_: None,
    *,
    strict: bool = False,
) -> tuple[Path, EngineManifest]:
    """Build every piece of a bundle that is not there yet, in a folder of `home`.

    `strict` fails on every warning of TensorRT that is not known to be harmless. Raises
    EngineError, ResourceError; finished plans stay. InputError if another build is writing there.
    """
    store = EngineStore(home / name_of(identity), identity)
    with store.held():
        found = {piece: store.kept(piece, strict) for piece in PIECES}
        _check_disk(store.folder, bundle, [p for p, kept in found.items() if kept is None])
        plans: dict[str, PlanSpec] = {}
        for piece, kept in found.items():
            if kept is not None:
                plans[piece] = kept
                on_progress(piece, "kept", 1, 1)
            else:
                plans[piece] = _build_piece(
                    bundle, piece, store, target, trt, limits, on_progress, strict
                )
        return store.folder, store.seal(plans)


def _build_piece(
    bundle: Bundle,
    piece: str,
    store: EngineStore,
    target: Target,
    trt: Any,
    limits: Limits,
    on_progress: OnProgress,
    strict: bool,
) -> PlanSpec:
    """Build one plan and put it on disk; it is in memory no longer than this takes."""

    def heard(phase: str, done: int, total: int) -> None:
        on_progress(piece, phase, done, total)

    store.begin(piece)
    on_progress(piece, "parsing", 0, 0)
    path, spec = bundle.path(piece), bundle.piece(piece)
    ranges = profiles(bundle, piece, limits)
    cache = store.timing_cache()
    made = build(trt, target, path, ranges, limits.max_seq, heard, cache, strict)
    check_ports(path.name, "input", bundle_ports(spec.inputs, limits.max_seq), made.inputs)
    check_ports(path.name, "output", bundle_ports(spec.outputs, limits.max_seq), made.outputs)
    log = "\n".join(made.log.lines) + "\n"
    finished = store.finish(piece, made.plan, log, made.seconds, len(made.log.warnings))
    if made.timing_cache is not None:
        store.keep_timing_cache(made.timing_cache)
    return finished


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
    """Of the graph as TensorRT gets it, lowering included."""
    model = lower(onnx.load(bundle.path(piece), load_external_data=False), capacity)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
