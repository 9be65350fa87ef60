"""`mimo-edge build --target ort-cpu`: a bundle that ONNX Runtime loads fast on this machine."""

import argparse
import json
from functools import partial

import onnxruntime
from mimo_edge.engines.ort.build import build_bundle
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.bundle.built import ORT_CPU, find_built, place_of
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.scripts.progress import StageProgress, size

# options of TensorRT builds
_OTHERS = ("recipe", "max_seq", "in_bundle", "strict", "print_trtexec")


def run(bundle: Bundle, args: argparse.Namespace, progress: StageProgress) -> int:
    """Build, with progress, unless it is there. Returns the exit code."""
    given = [f"--{name.replace('_', '-')}" for name in _OTHERS if getattr(args, name)]
    if given:
        raise InputError(f"{given[0]} is for TensorRT engines; leave it out for {ORT_CPU}")
    version = onnxruntime.__version__
    place = place_of(bundle, version, args.engines)
    weights = bundle.data_bytes()
    if args.dry_run:
        if args.json:
            print(json.dumps({"target": ORT_CPU, "place": str(place), "most_bytes": 2 * weights}))
        else:
            print(f"{ORT_CPU}: would write {place}, at most {size(2 * weights)}")
        return 0
    found = find_built(bundle, version) if args.engines is None else None
    built = place if found is None else found.folder
    if found is None:
        built = build_bundle(bundle, place, progress.report)
        # hashed once now, and remembered, rather than at the first start
        made = Bundle.open(built, on_progress=partial(progress.report, "checking what was written"))
        progress.report("loading every piece", 0, 0)
        with open_backend(ORT_CPU, made) as backend:
            backend.load(list(made.manifest.pieces))
    held = Bundle.open(built, verify=False).bytes
    if args.json:
        print(json.dumps({"target": ORT_CPU, "place": str(built), "bytes": held}))
    else:
        print(f"{built}: {size(held)}, for ONNX Runtime {version} on this processor")
    return 0
