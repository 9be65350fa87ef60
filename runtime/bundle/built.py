"""Bundles that were built for one backend on one kind of machine: whether they fit, and where.

<root>/<bundle>/ort-cpu-<version>-<processor>     root as of engines

Such a bundle has the same ports as the one that it was made from, and takes its place. It is data.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine_folders import cache_folder
from mimo_edge.runtime.bundle.errors import BundleError, EngineError
from mimo_edge.runtime.bundle.manifest import MANIFEST, Built
from mimo_edge.runtime.bundle.processor import processor

ORT_CPU = "ort-cpu"
# what a build keeps keys and values in, as `--kv-cache` calls it -> the dtype
KV_CACHES = {"float": "float32", "int8": "int8"}
FLOAT, INT8 = KV_CACHES


def built_here(
    bundle: Bundle, onnxruntime: str, unread: Mapping[str, int], packed: str, calibration: str
) -> Built:
    """What a build of this bundle is for, here. `packed` is one of PACKED, `calibration` the digest
    of that by which its keys and values are int8, "" for floats."""
    source = bundle.identity
    return Built(ORT_CPU, onnxruntime, processor(), source, unread, packed, calibration)


def place_of(bundle: Bundle, onnxruntime: str, root: Path | None = None) -> Path:
    """Where the build for this machine is, or would be; `root` in place of the cache folder."""
    own = hashlib.sha256(processor().encode()).hexdigest()[:8]
    return (root or cache_folder()) / bundle.identity[:16] / f"{ORT_CPU}-{onnxruntime}-{own}"


def find_built(bundle: Bundle, onnxruntime: str, root: Path | None = None) -> Bundle | None:
    """The build of a bundle for this machine, opened; None if there is none.

    Raises EngineError, where a root is given, if nothing there fits.
    """
    place = place_of(bundle, onnxruntime, root)
    reason = f"{place} is not there"
    if (place / MANIFEST).is_file():
        try:
            found = Bundle.open(place, verify=bundle.verify)
            check_built(found, ORT_CPU, onnxruntime)
            built = found.manifest.built
            if built is not None and built.source == bundle.identity:
                return found
            reason = f"{place} was built from another bundle"
        except (BundleError, EngineError) as error:
            reason = str(error)
    if root is None:
        return None
    raise EngineError(
        f"{root} has no build of {bundle.folder} for ONNX Runtime {onnxruntime} on this machine: "
        f"{reason}. Make it: mimo-edge build {bundle.folder} --target {ORT_CPU} --engines {root}"
    )


def check_built(bundle: Bundle, target: str, onnxruntime: str | None = None) -> None:
    """Raises EngineError for a bundle that was built for something else than what is here."""
    built = bundle.manifest.built
    if built is None:
        return
    remedy = f"Build it here: mimo-edge build BUNDLE --target {built.target}"
    for what, there, here in (
        ("backend", built.target, target),
        ("ONNX Runtime", built.onnxruntime, onnxruntime or "none"),
        ("a processor with", built.processor, processor()),
    ):
        if there != here:
            raise EngineError(
                f"{bundle.folder} was built for {what} {_beside(there, here)}, here is "
                f"{_beside(here, there)}. {remedy}"
            )


def _beside(own: str, other: str) -> str:
    """Of two lists of words that differ, what only this one has."""
    words = [word for word in own.split() if word not in other.split()]
    return " ".join(words) or "nothing more"
