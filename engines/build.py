"""Engines of a whole bundle: plan, build what is not there yet, and finish with engine.json.

A plan is written under a temporary name and renamed; engine.json comes last, so a folder without it
is not finished. Finished plans of the same identity are taken over by the next build.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.builder import Built, build
from engines.profiles import Limits, profiles
from engines.recipe import Recipe
from engines.target import Target
from runtime.bundle import PIECES, Bundle, FileSpec, hash_file, write_text
from runtime.engine import MANIFEST, EngineManifest, Identity, folder_of
from runtime.errors import ResourceError

FLAGS = ("STRONGLY_TYPED", "NO_TF32")
# What a build takes, fitted to measured ones (docs/tensorrt.md). The patch decoder counts once per
# sub-step: it is unrolled, and the builder works on every copy.
MEMORY_BASE = 1.5e9
MEMORY_PER_WEIGHT_BYTE = 3.0
SECONDS_PER_GB = 10.0

Report = Callable[[str, str, int, int], None]  # piece, phase, steps done, steps in all


@dataclass(frozen=True)
class Estimate:
    """What is to come for one piece."""

    piece: str
    weight_bytes: int
    engine_bytes: int
    memory_bytes: int
    seconds: float


def identity_of(
    bundle: Bundle, recipe: Recipe, target: Target, version: str, limits: Limits
) -> Identity:
    """What the engines depend on."""
    return Identity(
        bundle=bundle.identity,
        recipe=recipe.name,
        precision=dict(recipe.precision),
        product=target.product,
        version=version,
        capabilities=target.capabilities,
        max_seq=limits.max_seq,
        max_batch=limits.max_batch,
        profiles=json.loads(json.dumps({p: profiles(bundle, p, limits) for p in PIECES})),
        flags=FLAGS,
    )


def estimate(bundle: Bundle, target: Target) -> list[Estimate]:
    """Size, memory and time of each piece, by simple proportion to its weights."""
    copies = max(1, len(target.capabilities))
    result = []
    for piece in PIECES:
        weights = bundle.manifest.files[bundle.piece(piece).file + ".data"].bytes
        model = bundle.model
        passes = model.group_size + max(model.delays) if piece == "patch_decoder" else 1
        memory = MEMORY_BASE + max(MEMORY_PER_WEIGHT_BYTE, 2 * passes) * weights
        seconds = 2 + SECONDS_PER_GB * weights * passes * copies / 1e9
        result.append(Estimate(piece, weights, weights * copies, int(memory), seconds))
    return result


def build_engines(
    bundle: Bundle,
    identity: Identity,
    target: Target,
    trt: Any,
    limits: Limits,
    report: Report = lambda *_: None,
) -> tuple[Path, EngineManifest]:
    """Build every piece of a bundle. Raises EngineError, ResourceError; finished plans stay."""
    folder = folder_of(bundle, identity)
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(e.engine_bytes for e in estimate(bundle, target))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder} has {free / 1e9:.1f} GB free, the engines need about {needed / 1e9:.1f} GB. "
            "Free some, or build for fewer compute capabilities."
        )
    plans: dict[str, FileSpec] = {}
    seconds: dict[str, float] = {}
    for piece in PIECES:
        kept = _read_marker(folder, piece, identity.key)
        if kept is not None:
            plans[piece], seconds[piece] = kept
            report(piece, "kept", 1, 1)
            continue

        def heard(phase: str, done: int, total: int, piece: str = piece) -> None:
            report(piece, phase, done, total)

        built = build(
            trt,
            target,
            bundle.path(piece),
            profiles(bundle, piece, limits),
            limits.max_seq,
            heard,
            # TensorRT for RTX chooses kernels on the user's machine and times nothing here
            folder.parent / "timing.cache" if target.product == "trt" else None,
        )
        plans[piece], seconds[piece] = _store(folder, piece, built, identity.key), built.seconds
    log = hashlib.sha256()
    for piece in PIECES:
        log.update((folder / f"{piece}.log").read_bytes())
    manifest = EngineManifest(identity, plans, log.hexdigest(), seconds)
    write_text(folder / MANIFEST, manifest.to_json())
    return folder, manifest


def _store(folder: Path, piece: str, built: Built, key: str) -> FileSpec:
    path = folder / f"{piece}.plan"
    temporary = path.with_suffix(".plan.tmp")
    try:
        temporary.write_bytes(built.plan)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    write_text(folder / f"{piece}.log", "\n".join(built.log.lines) + "\n")
    spec = hash_file(path)
    marker = {"key": key, "plan": dataclasses.asdict(spec), "seconds": built.seconds}
    write_text(folder / f"{piece}.json", json.dumps(marker))
    return spec


def _read_marker(folder: Path, piece: str, key: str) -> tuple[FileSpec, float] | None:
    """A plan that an earlier build of the same identity finished, or None."""
    try:
        raw = json.loads((folder / f"{piece}.json").read_text(encoding="utf-8"))
        spec = FileSpec(**raw["plan"])
        if raw["key"] == key and hash_file(folder / f"{piece}.plan") == spec:
            return spec, float(raw["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
