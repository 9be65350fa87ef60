"""`mimo-edge pack`: what one device needs of a bundle, in a folder that runs like one."""

import argparse
import json
from functools import partial
from pathlib import Path

from mimo_edge.engines.build import engine_home
from mimo_edge.engines.bundle_recipe import for_bundle
from mimo_edge.engines.pack import ORT_TARGETS, Engines, folder_bytes, pack_bundle, spelled
from mimo_edge.engines.profiles import Limits
from mimo_edge.engines.runnable import check_runnable
from mimo_edge.engines.target import parse
from mimo_edge.runtime.backends.opening import onnxruntime_version
from mimo_edge.runtime.bundle.built import ORT_CPU, find_built
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, InputError
from mimo_edge.runtime.bundle.folders import check_output
from mimo_edge.runtime.bundle.manifest import IN_FILE
from mimo_edge.runtime.bundle.pack import PACK
from mimo_edge.scripts import build_ort
from mimo_edge.scripts.build import engines_of
from mimo_edge.scripts.build_ort import BuildForm, form_of
from mimo_edge.scripts.progress import StageProgress, size

EPILOG = """targets: those of `mimo-edge build`. For TensorRT the engines are built first, or taken
from where `mimo-edge build` left them; what is built stays there if this is interrupted. For
ort-cpu, --packed and --kv-cache do the same; without them, what is packed is the build that is
there, in whatever form, or the bundle as it is, which runs on any processor.

examples:
  mimo-edge pack bundle --target ort-cpu -o device
  mimo-edge pack bundle --target ort-cpu --packed memory -o device
  mimo-edge pack bundle --target trt-rtx:8.9 --max-seq 2048 -o device
  mimo-edge run tts device "Hello there." -o hello.wav --backend trt-rtx --trust-engines"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--target", required=True, help="see below")
    parser.add_argument("-o", "--output", metavar="DEVICE", type=Path, required=True)
    parser.add_argument(
        "--max-seq", metavar="N", type=int, help="of engines: patches that a row can hold"
    )
    parser.add_argument("--max-batch", metavar="N", type=int, help="of engines: rows (default: 1)")
    parser.add_argument(
        "--engines", metavar="DIR", type=Path, help="where engines are built, or lie already"
    )
    build_ort.add_arguments(parser)
    parser.add_argument("--force", action="store_true", help="replace DEVICE if it exists")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Pack, with progress. Returns the exit code."""
    target = spelled(args.target)
    if target in ORT_TARGETS:
        for flag in ("max_seq", "max_batch", "engines"):
            if getattr(args, flag) is not None:
                raise InputError(
                    f"--{flag.replace('_', '-')} is of engines, and {target} has none: leave it out"
                )
    if target != ORT_CPU:
        build_ort.check_others(args, target)
    with StageProgress() as progress:
        # files are hashed as they are copied; what is built of them is built before
        bundle = Bundle.open(
            args.bundle,
            verify=target not in ORT_TARGETS or build_ort.asked(args),
            on_progress=partial(progress.report, "checking the bundle"),
        )
        check_output(args.output, [bundle.folder], args.force)
        source = bundle
        if target == ORT_CPU:
            form = BuildForm.of(args) if build_ort.asked(args) else None
            source = _built(bundle, form, args.output, progress)
        engines = None if target in ORT_TARGETS else _engines(args, bundle, progress)
        if engines is not None and target == "trt":
            gpu = ", ".join(engines.manifest.identity.capabilities)
            progress.note(f"the engines are for this machine's GPU, compute capability {gpu}")
        pack = pack_bundle(
            source,
            target,
            args.output,
            engines,
            force=args.force,
            on_progress=partial(progress.report, "packing"),
        )
    packed, what = folder_bytes(args.output), _in_words(source, engines)
    if args.json:
        raw = {"folder": str(args.output), "bytes": packed, "bundle_bytes": bundle.bytes}
        print(json.dumps(raw | {"carries": what} | json.loads(pack.to_json())))
        return 0
    print(
        f"{args.output}: for {pack.target}, {what}, {size(packed)} where the bundle has "
        f"{size(bundle.bytes)}; {PACK} leads back to bundle {pack.packed_from[:16]}"
    )
    return 0


def _in_words(source: Bundle, engines: Engines | None) -> str:
    """What a pack carries."""
    if engines is not None:
        return "engines"
    built = source.manifest.built
    return "the bundle as it is" if built is None else f"a build with {form_of(built)}"


def _built(bundle: Bundle, form: BuildForm | None, output: Path, progress: StageProgress) -> Bundle:
    """The build of the bundle for this machine: in the form that is asked for, made if need be, or,
    where none is, the one that is there. The bundle itself, if none is there either."""
    built = bundle.manifest.built
    if built is not None:
        if form is not None and not form.is_of(built):
            raise InputError(
                f"{bundle.folder} is built already, and not with {form}. Pack the bundle that it "
                "was made of, or leave out what is said of the form."
            )
        return bundle
    if form is not None:
        bundle.check_whole("build")
        return build_ort.build_of(bundle, form, progress)
    try:
        found = find_built(bundle, onnxruntime_version())
    except EnvironmentProblem as error:  # nothing can have been built here
        progress.note(f"packing the bundle as it is: a faster build of it cannot be here, {error}")
        return bundle
    if found is None or found.manifest.built is None:
        progress.note(
            "packing the bundle as it is. Built for processors like this one, it starts sooner and "
            f"is faster: mimo-edge pack {bundle.folder} --target {ORT_CPU} --packed {IN_FILE} "
            f"-o {output} --force"
        )
        return bundle
    progress.note(f"packing the build in {found.folder}: {form_of(found.manifest.built)}")
    return found


def _engines(args: argparse.Namespace, bundle: Bundle, progress: StageProgress) -> Engines:
    """Those of the bundle, built if they are not there."""
    bundle.check_whole("build engines")
    target = parse(args.target)
    chosen = for_bundle(bundle, None)
    check_runnable(bundle, target)
    context = bundle.model.context
    limits = Limits(
        context if args.max_seq is None else args.max_seq,
        1 if args.max_batch is None else args.max_batch,
    )
    limits.check(context)
    home = engine_home(bundle, args.engines)
    return Engines(*engines_of(bundle, target, chosen, limits, home, progress))
