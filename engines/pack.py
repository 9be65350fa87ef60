"""A pack: no more of a bundle than one device needs, in a folder that the runtime opens like one.

For ONNX Runtime it has graphs and weights in the form that the backend loads, for TensorRT the
plans, which hold their weights themselves, and for both the text tokenizer and the manifest. Files
are copied and not linked: what becomes of the bundle afterwards changes nothing.

Everything is written into `<output>.partial`, which gets its name when it is whole.
"""

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mimo_edge.engines.target import parse
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import MANIFEST as ENGINE_MANIFEST
from mimo_edge.runtime.bundle.engine import EngineManifest
from mimo_edge.runtime.bundle.engine_folders import INSIDE
from mimo_edge.runtime.bundle.errors import BundleError, EngineError
from mimo_edge.runtime.bundle.files import chunks, write_text
from mimo_edge.runtime.bundle.folders import check_output
from mimo_edge.runtime.bundle.manifest import MANIFEST, FileSpec
from mimo_edge.runtime.bundle.pack import PACK, Pack
from mimo_edge.runtime.bundle.unfinished import finish, own_place, partial_folder

ORT_TARGETS = ("ort-cpu", "ort-cuda")
OnProgress = Callable[[int, int], None]  # bytes copied, bytes in all


@dataclass(frozen=True)
class Source:
    """A file that goes into a pack, and what it must be; None where that is not known."""

    path: Path
    spec: FileSpec | None


@dataclass(frozen=True)
class Engines:
    """A finished engine folder."""

    folder: Path
    manifest: EngineManifest


def spelled(target: str) -> str:
    """A target as pack.json names it. Raises InputError for one that is none."""
    if target in ORT_TARGETS:
        return target
    parsed = parse(target)
    return ":".join([parsed.product, ",".join(parsed.capabilities)]).rstrip(":")


def pack_bundle(
    bundle: Bundle,
    target: str,
    output: Path,
    engines: Engines | None = None,
    *,
    force: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> Pack:
    """Write the pack of a bundle for a target; for TensorRT its engines must be given.

    Every file is hashed as it is copied, so the bundle need not be verified before. Raises
    InputError, BundleError for a file that is damaged, ResourceError; a failure leaves nothing.
    """
    assert (engines is None) == (target in ORT_TARGETS)
    bundle.check_whole("pack")
    place = check_output(output, [bundle.folder], force)
    sources = carried(bundle, target)
    plans = {} if engines is None else _plans(engines)
    total = sum(source.path.stat().st_size for source in (*sources.values(), *plans.values()))
    done = 0

    def heard(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    with own_place(place), partial_folder(place, total, resume=False) as folder:
        check_output(output, [bundle.folder], force)  # another may have ended since
        files = {name: _copy(source, folder / name, heard) for name, source in sources.items()}
        if engines is not None:
            inside = folder / INSIDE / engines.folder.name
            inside.mkdir(mode=0o700, parents=True)
            for name, source in plans.items():
                _copy(source, inside / name, heard)
        pack = Pack(spelled(target), bundle.identity, _tools(engines), files)
        write_text(folder / PACK, pack.to_json())
        finish(folder, place)
    return pack


def carried(bundle: Bundle, target: str) -> Mapping[str, Source]:
    """The files of a bundle that a target needs, by their names in the pack.

    ONNX Runtime loads the bundle's own graphs. A form of them that is built for it takes their
    places here, under the same names.
    """
    manifest = bundle.manifest
    made = {name for spec in manifest.pieces.values() for name in (spec.file, spec.data)}
    found = {MANIFEST: Source(bundle.folder / MANIFEST, None)}
    for name, spec in manifest.files.items():
        if target in ORT_TARGETS or name not in made:
            found[name] = Source(bundle.folder / name, spec)
    return found


def _plans(engines: Engines) -> Mapping[str, Source]:
    """What the runtime reads of an engine folder; logs stay where the engines were built."""
    found = {ENGINE_MANIFEST: Source(engines.folder / ENGINE_MANIFEST, None)}
    for piece, plan in engines.manifest.plans.items():
        name = f"{piece}.plan"
        found[name] = Source(engines.folder / name, plan.file)
    return found


def _copy(source: Source, target: Path, on_write: Callable[[int], None]) -> FileSpec:
    """Copy a file to the disk and hash it on the way. Raises BundleError, EngineError if it is not
    what it should be."""
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as file:
        for chunk in chunks(source.path):
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
            on_write(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    found = FileSpec(digest.hexdigest(), size)
    if source.spec not in (None, found):
        if source.path.suffix == ".plan":
            raise EngineError(
                f"{source.path} is truncated or altered. Remove its folder, and pack again: it is "
                "built anew."
            )
        raise BundleError(
            f"{source.path} was altered: its sha256 is not the one in {MANIFEST}. Copy the whole "
            "bundle again, or export it again."
        )
    return found


def _tools(engines: Engines | None) -> Mapping[str, str]:
    tools = {"mimo-edge": importlib.metadata.version("mimo-edge")}
    if engines is not None:
        identity = engines.manifest.identity
        tools[identity.product] = identity.version
    return tools


def folder_bytes(folder: Path) -> int:
    """Of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
