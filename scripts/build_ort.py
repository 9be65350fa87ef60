"""`mimo-edge build --target ort-cpu`: a bundle that ONNX Runtime loads fast on this machine.

Other targets read this module too, so ONNX Runtime is imported where it is wanted.
"""

import argparse
import json
from pathlib import Path

from mimo_edge.engines.work import Work
from mimo_edge.runtime.backends.opening import onnxruntime_version, open_backend
from mimo_edge.runtime.bundle.built import ORT_CPU, find_built, place_of
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import IN_FILE, IN_MEMORY, PACKED
from mimo_edge.scripts.progress import StageProgress, size

# options of TensorRT builds
_OTHERS = ("recipe", "max_seq", "in_bundle", "strict", "print_trtexec")


def add_arguments(parser: argparse.ArgumentParser, default: str = IN_FILE) -> None:
    """Declare what only such a build takes. `default` says what holds where nothing is said."""
    parser.add_argument(
        "--packed",
        choices=PACKED,
        help=f"of {ORT_CPU}: where weights are packed for the processor (default: {default}). "
        f"{IN_FILE}: once, beside the unpacked ones, and mapped from there. {IN_MEMORY}: each time "
        "that they are loaded; half the disk, a slower start, and as much heap as the weights",
    )


def check_others(args: argparse.Namespace, target: str) -> None:
    """Raises InputError for what only this target takes."""
    if args.packed is not None:
        raise InputError(f"--packed is for {ORT_CPU}; leave it out for {target}")


def run(bundle: Bundle, args: argparse.Namespace, progress: StageProgress) -> int:
    """Build, with progress, unless it is there. Returns the exit code."""
    given = [f"--{name.replace('_', '-')}" for name in _OTHERS if getattr(args, name)]
    if given:
        raise InputError(f"{given[0]} is for TensorRT engines; leave it out for {ORT_CPU}")
    packed, version = args.packed or IN_FILE, onnxruntime_version()
    if args.dry_run:
        from mimo_edge.engines.ort.build import most_bytes

        place = place_of(bundle, version, args.engines)
        most = most_bytes(bundle, packed)
        if args.json:
            print(json.dumps({"target": ORT_CPU, "place": str(place), "most_bytes": most}))
        else:
            print(f"{ORT_CPU}: would write {place}, at most {size(most)}")
        return 0
    built = build_of(bundle, packed, progress, args.engines)
    if args.json:
        print(json.dumps({"target": ORT_CPU, "place": str(built.folder), "bytes": built.bytes}))
    else:
        print(
            f"{built.folder}: {size(built.bytes)}, for ONNX Runtime {version} on this processor, "
            f"weights packed in {packed}"
        )
    return 0


def build_of(
    bundle: Bundle, packed: str, progress: StageProgress, root: Path | None = None
) -> Bundle:
    """The build of a bundle for this machine in one of the forms of PACKED, made if it is not
    there. `root` is a folder of builds, in place of the cache folder: there it is made anew."""
    version = onnxruntime_version()
    from mimo_edge.engines.ort.build import CHECKING, LOADING, build_bundle, build_costs

    found = find_built(bundle, version) if root is None else None
    if found is not None and found.manifest.built and found.manifest.built.packed == packed:
        return found
    place = place_of(bundle, version, root)
    work = Work(build_costs(bundle, packed), progress.work)
    build_bundle(bundle, place, work, packed=packed)
    # hashed once now, and remembered, rather than at the first start
    made = Bundle.open(place, on_progress=lambda done, all: work.reach(CHECKING, done / all))
    work.reach(LOADING, 0)
    with open_backend(ORT_CPU, made) as backend:
        backend.load(list(made.manifest.pieces))
    work.end()
    return made
