"""`mimo-edge validate --bisect`: which layer a build goes wrong in, on ONNX Runtime or TensorRT."""

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mimo_edge.engines.builder import load_module
from mimo_edge.engines.target import Target
from mimo_edge.parity.bisect import Bisection
from mimo_edge.parity.engine_bisect import ANOTHER, NOT_RUN, SUSPECTS, EngineBisection
from mimo_edge.parity.engine_case import HEADER
from mimo_edge.parity.engine_case_maker import make_case
from mimo_edge.parity.engine_maker import EngineMaker, passing_folder
from mimo_edge.parity.findings import Bisected
from mimo_edge.parity.judge import Verdict
from mimo_edge.parity.recording import Recording, is_recording
from mimo_edge.parity.reference_side import ReferenceSide
from mimo_edge.parity.thresholds import Thresholds
from mimo_edge.parity.whole_folder import whole_folder
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.backends.trt import TrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import MODULES, Identity
from mimo_edge.runtime.bundle.engine_folders import Trust, Wanted, find
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, InputError
from mimo_edge.runtime.bundle.folders import check_place
from mimo_edge.runtime.bundle.manifest import MANIFEST
from mimo_edge.scripts.backend_arguments import opening

Report = Callable[..., None]


# what `TrtBackend.describe` says: product, version, compute capability
RAN_ON = re.compile(r"(trt-rtx|trt) (\S+) on compute capability ([0-9]+\.[0-9]+)")
LAYERS = "-layers"  # behind the report's name: the folder that is to be run elsewhere


def check(args: argparse.Namespace) -> None:
    """Before minutes are spent. Raises InputError, BundleError, EnvironmentProblem."""
    checkpoint = args.audio_tokenizer is not None and not is_recording(args.against)
    bundles = args.candidates
    if args.bisect_bundle is not None:
        if len(bundles) != 1 or not is_recording(bundles[0]):
            raise InputError("--bisect-bundle is the bundle of one recording: give that alone")
        bundles = [args.bisect_bundle]
    whole = all((path / MANIFEST).is_file() for path in bundles)
    if args.backend not in ("ort-cpu", *MODULES) or not whole or not checkpoint:
        raise InputError(
            "--bisect needs the graphs themselves: give bundles, --backend ort-cpu, "
            f"{' or '.join(MODULES)}, and a checkpoint with its --audio-tokenizer after --against. "
            "Of a recording that TensorRT made elsewhere, name the bundle: --bisect-bundle DIR."
        )
    if args.bisect_bundle is not None:
        _recorded(args)
    elif args.backend in MODULES:
        for path in bundles:
            Bundle.open(path, verify=False).check_whole("build engines that show its layers")
        _check_gpu()


def _check_gpu() -> None:
    try:
        CudaDevice().close()
    except EnvironmentProblem as error:
        raise EnvironmentProblem(
            f"{error} Without a GPU no engine runs, and each that --bisect builds depends on what "
            "the one before has shown. Record where the GPU is (`mimo-edge record`), and give the "
            "recording here, with --bisect-bundle."
        ) from error


def _recorded(args: argparse.Namespace) -> tuple[Bundle, Identity]:
    """The bundle of a recording, and what its engines were built for. Raises InputError for another
    bundle's recording, EngineError where these engines are not here."""
    identity = Recording.open(args.candidates[0]).identity
    bundle = Bundle.open(args.bisect_bundle, verify=False)
    bundle.check_whole("build engines that show its layers")
    ran = RAN_ON.fullmatch(str(identity["runs_on"]))
    if identity["id"] != bundle.identity or ran is None:
        raise InputError(
            f"{args.candidates[0]} is of {str(identity['id'])[:16]} on {identity['runs_on']}, "
            f"{bundle.folder} is {bundle.identity[:16]}: --bisect-bundle is for the very bundle, "
            "and for what TensorRT computed."
        )
    product, version, capability = ran.groups()
    here = load_module(Target(product)).__version__
    if here != version:
        raise EnvironmentProblem(
            f"the recording was made with {product} {version}, here is {here}, whose engines would "
            "not load there. Install that version, or build and record again with this one."
        )
    folder = _layers_folder(args)
    check_place(folder)
    if folder.exists() and not (folder / HEADER).is_file():
        raise InputError(f"{folder} is in the way, where an engine is to be written; move it")
    wanted = Wanted(product, version, capability)
    return bundle, find(bundle, wanted, Trust(args.engines, args.trust_engines))[1].identity


def _layers_folder(args: argparse.Namespace) -> Path:
    """Beside the report."""
    output: Path = args.output
    return output.with_name(output.name + LAYERS)


def bisected(
    args: argparse.Namespace,
    path: Path,
    verdict: Verdict,
    thresholds: Thresholds,
    on_progress: Report,
) -> Verdict:
    """The verdict on a candidate, with what its layers say."""
    side = ReferenceSide(args.against, args.audio_tokenizer, args.text_tokenizer)
    allowed = thresholds.all["layer_snr"].limits[verdict.candidate.identity["precision"]]
    if args.bisect_bundle is not None:
        found = _left_to_the_device(args, side, verdict, allowed, on_progress)
    elif args.backend in MODULES:
        found = _searched(args, path, side, verdict, allowed, on_progress)
    else:
        with OrtBackend(Bundle.open(path, verify=False), threads=args.threads) as backend:
            budget = args.bisect_memory << 20
            found = Bisection(side, backend, verdict.own, allowed, budget).run()
    return replace(verdict, bisected=found)


def _searched(
    args: argparse.Namespace,
    path: Path,
    side: ReferenceSide,
    verdict: Verdict,
    allowed: float,
    on_progress: Report,
) -> Bisected:
    """What a search finds; minutes were spent by now, and a report is made all the same."""
    bundle = Bundle.open(path, verify=False)
    try:
        with (
            open_backend(args.backend, bundle, **opening(args)) as engines,
            passing_folder(args.output) as folder,
        ):
            assert isinstance(engines, TrtBackend)
            maker = EngineMaker(engines, folder, on_progress)
            return EngineBisection(side, maker, verdict.own, allowed).run(verdict.first_failed)
    except NOT_RUN as error:  # of the engines of the build: somebody else may have the GPU now
        return Bisected((), notes=(f"No engine was built to look at layers. {error}",))


def _left_to_the_device(
    args: argparse.Namespace,
    side: ReferenceSide,
    verdict: Verdict,
    allowed: float,
    on_progress: Report,
) -> Bisected:
    """Build what shows the layers of the piece that failed, and say what to do with it."""
    failed = verdict.first_failed
    if failed is None or failed not in SUSPECTS:
        why = "every stage is in tolerance" if failed is None else f"{failed} has no layers"
        return Bisected((), notes=(f"No engine was built to look at layers: {why}.",))
    bundle, identity = _recorded(args)
    folder = _layers_folder(args)
    try:
        with whole_folder(folder) as partial:
            stages = make_case(
                side, bundle, identity, verdict.own, failed, allowed, partial, on_progress
            )
    except (*NOT_RUN, InputError) as error:
        return Bisected((), notes=(f"{failed}: no engine that shows its layers. {error}",))
    return Bisected(
        (),
        notes=(
            ANOTHER,
            f"{failed}: what makes it fail was not searched, for engines do not run here. {folder} "
            f"holds engines that show all states of {', '.join(stages)}, and the reference's "
            f"states. Where {args.candidates[0].name} was recorded: mimo-edge record "
            f"{bundle.folder.name} --backend {identity.product} --layers {folder.name} "
            "-o layers.json",
        ),
    )
