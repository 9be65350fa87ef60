"""`mimo-edge validate --bisect`: which layer a build goes wrong in, on ONNX Runtime or TensorRT."""

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mimo_edge.parity.findings import Bisected
from mimo_edge.parity.judge import Verdict
from mimo_edge.parity.recording import is_recording
from mimo_edge.parity.thresholds import Thresholds
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.backends.trt import TrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import MODULES
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, InputError
from mimo_edge.runtime.bundle.manifest import MANIFEST
from mimo_edge.runtime.bundle.requirements import install
from mimo_edge.scripts.backend_arguments import opening

Report = Callable[..., None]


def check(args: argparse.Namespace) -> None:
    """Before minutes are spent. Raises InputError, BundleError, EnvironmentProblem."""
    whole = all((path / MANIFEST).is_file() for path in args.candidates)
    checkpoint = args.audio_tokenizer is not None and not is_recording(args.against)
    if args.backend not in ("ort-cpu", *MODULES) or not whole or not checkpoint:
        raise InputError(
            "--bisect needs the graphs themselves: give bundles, --backend ort-cpu, "
            f"{' or '.join(MODULES)}, and a checkpoint with its --audio-tokenizer after --against"
        )
    for package in ("onnx", "torch"):
        if importlib.util.find_spec(package) is None:
            raise EnvironmentProblem(
                f"--bisect needs the package {package}. Install it: {install('export')}"
            )
    if args.backend in MODULES:
        for path in args.candidates:
            Bundle.open(path, verify=False).check_whole("build engines that show its layers")


def bisected(
    args: argparse.Namespace,
    path: Path,
    verdict: Verdict,
    thresholds: Thresholds,
    on_progress: Report,
) -> Verdict:
    """The verdict on a bundle, with what its layers say."""
    from mimo_edge.parity.reference_side import ReferenceSide

    side = ReferenceSide(args.against, args.audio_tokenizer, args.text_tokenizer)
    bundle = Bundle.open(path, verify=False)
    allowed = thresholds.all["layer_snr"].limits[verdict.candidate.identity["precision"]]
    found: Bisected
    if args.backend in MODULES:
        from mimo_edge.parity.engine_bisect import EngineBisection
        from mimo_edge.parity.engine_maker import EngineMaker, passing_folder

        with (
            open_backend(args.backend, bundle, **opening(args)) as engines,
            passing_folder(args.output) as folder,
        ):
            assert isinstance(engines, TrtBackend)
            maker = EngineMaker(engines, folder, on_progress)
            search = EngineBisection(side, maker, verdict.own, allowed)
            found = search.run(verdict.first_failed)
    else:
        from mimo_edge.parity.bisect import Bisection

        with OrtBackend(bundle, threads=args.threads) as backend:
            budget = args.bisect_memory << 20
            found = Bisection(side, backend, verdict.own, allowed, budget).run()
    return replace(verdict, bisected=found)
