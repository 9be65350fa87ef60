"""`mimo-edge bench`: what each stage of a bundle takes here, and how far that is from the bound."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mimo_edge.engines.plan.devices import CPU, this_machine
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.backends.base import Backend
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, InputError
from mimo_edge.runtime.bundle.manifest import PIECES
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.generation.loop import generate
from mimo_edge.runtime.generation.request import Request
from mimo_edge.scripts.backend_arguments import add_backend_arguments, opening
from mimo_edge.scripts.benchmark import table
from mimo_edge.scripts.benchmark.foretold import Foretold, foretold
from mimo_edge.scripts.benchmark.held import held
from mimo_edge.scripts.benchmark.report import Growth, Report
from mimo_edge.scripts.benchmark.speech import speak
from mimo_edge.scripts.benchmark.stages import (
    Speaking,
    Stage,
    measure,
    patch_stages,
    weights_read,
)
from mimo_edge.scripts.machine import cores, memory_bytes, product_rate, read_rate
from mimo_edge.scripts.progress import StageProgress

PROMPT = 64  # patches
SPEECH_SECONDS = 4
STREAMED = 25  # patches: 4 seconds
CONTEXTS = (64, 256, 1024, 4096)  # patches that a row holds
BATCHES = (1, 2, 4, 8)  # rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    add_backend_arguments(parser, verify=False)
    parser.add_argument("--rows", metavar="N", type=int, default=1, help="rows that share a step")
    parser.add_argument("--runs", metavar="N", type=int, default=30)
    parser.add_argument(
        "--growth",
        action="store_true",
        help=f"also contexts of {_list(CONTEXTS)} patches, and {_list(BATCHES)} rows",
    )
    parser.add_argument(
        "--reference",
        metavar="CHECKPOINT",
        type=Path,
        help="also the PyTorch reference on the language model in this folder, in bfloat16",
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="the growth as a picture")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Measure and print. Returns the exit code."""
    for name, value in (("--runs", args.runs), ("--rows", args.rows)):
        if value < 1:
            raise InputError(f"{name} {value} is too small: give 1 or more")
    if args.plot is not None and not args.growth:
        raise InputError("--plot draws what --growth measures: give both")
    bundle = Bundle.open(args.bundle, verify=False)
    with StageProgress() as progress:
        report = _measured(bundle, args, lambda what: progress.report(what, 0, 0))
    if args.plot is not None:
        table.plot(report, args.plot)
    print(json.dumps(report.to_raw()) if args.json else table.text(report))
    return 0


def _measured(
    bundle: Bundle, args: argparse.Namespace, on_progress: Callable[[str], None]
) -> Report:
    on_progress("reading memory")
    rate = read_rate(args.threads)
    on_progress("loading")
    begin = time.perf_counter()
    with open_backend(args.backend, bundle, **opening(args)) as backend:
        backend.load([piece for piece in PIECES if piece in bundle.manifest.pieces])
        loaded = time.perf_counter() - begin
        most = held()
        stages = _stages(backend, args.rows, args.runs, rate, on_progress)
        told = _foretold(bundle, backend, args, rate, stages)
        most = most.most(held())
        on_progress("generating")
        share = _overhead(backend, args.runs)
        answer = None
        if bundle.speaks:
            on_progress("speaking")
            answer = speak(backend, PROMPT, STREAMED)
            most = most.most(held())
        growth = []
        for rows, context in _grown(bundle, args.growth):
            on_progress(f"{rows} rows of {context} patches")
            growth.append(_growth(backend, rows, context, args.runs, rate))
            most = most.most(growth[-1].held)
        described = backend.describe()
    reference = []
    if args.reference is not None:
        on_progress("the reference")
        reference = _reference(args.reference, args.runs, rate)
    gb = rate / 1e9
    return Report(described, gb, loaded, most, share, stages, told, growth, answer, reference)


def _stages(
    backend: Backend, rows: int, runs: int, rate: float, on_progress: Callable[[str], None]
) -> list[Stage]:
    bundle = backend.bundle
    model, rng = bundle.model, np.random.default_rng(0)
    wav = rng.normal(0, 0.1, SPEECH_SECONDS * model.sampling_rate).astype(np.float32)
    mel, codes = backend.mel(wav), codec.encode(backend, wav)
    lengths = np.array([codes.shape[1]], np.int64)

    def read(*pieces: str, positions: int = 0) -> int:
        return sum(weights_read(bundle, piece, positions) for piece in pieces)

    def prefill() -> None:
        speaking = Speaking(backend.new_rows, bundle, 1)
        speaking.prefill(PROMPT)
        speaking.close()

    calls: dict[str, tuple[int, Callable[[], object]]] = {
        f"mel, {SPEECH_SECONDS} s": (read("mel"), lambda: backend.mel(wav)),
        f"tokenizer_encoder, {SPEECH_SECONDS} s": (
            read("tokenizer_encoder"),
            lambda: backend.encode(mel),
        ),
        f"prefill, {PROMPT} patches": (
            read("patch_encoder", "backbone", positions=PROMPT),
            prefill,
        ),
    }
    if bundle.speaks:
        calls[f"tokenizer_decoder, {SPEECH_SECONDS} s"] = (
            read("tokenizer_decoder"),
            lambda: backend.decode(codes[None], lengths),
        )
    few = max(2, runs // 3)  # these are long, and vary little
    stages = []
    for name, (weights, call) in calls.items():
        on_progress(name)
        stages.append(measure(name, call, few, weights, rate))
    if bundle.speaks:
        on_progress("patches")
        stages += patch_stages(backend.new_rows, bundle, rows, PROMPT, runs, rate)
    return stages


def _foretold(
    bundle: Bundle, backend: Backend, args: argparse.Namespace, rate: float, stages: list[Stage]
) -> list[Foretold]:
    """Of a bundle as it was made: a build does not say how many numbers its weights were."""
    if args.backend != CPU or bundle.manifest.built is not None or not bundle.speaks:
        return []
    machine = this_machine(rate, product_rate(), memory_bytes(), cores())
    return foretold(bundle, backend.bundle, machine, args.rows, PROMPT, stages[-3:])


def _grown(bundle: Bundle, asked: bool) -> list[tuple[int, int]]:
    """Rows and contexts."""
    if not asked or not bundle.speaks:
        return []
    most = bundle.model.context * 3 // 4  # leaves room for the patches that are timed
    contexts = [(1, context) for context in CONTEXTS if context <= most]
    return [*contexts, *((rows, PROMPT) for rows in BATCHES if rows > 1)]


def _growth(backend: Backend, rows: int, context: int, runs: int, rate: float) -> Growth:
    patch = patch_stages(backend.new_rows, backend.bundle, rows, context, max(5, runs // 2), rate)
    return Growth(rows, context, patch[-1].median_ms, patch[-1].p95_ms, held())


def _reference(checkpoint: Path, runs: int, rate: float) -> list[Stage]:
    try:
        from mimo_edge.scripts.benchmark.reference import reference_stages
    except ImportError as error:
        raise EnvironmentProblem(
            f"--reference needs PyTorch ({error}). Leave it out, or install the extra export."
        ) from error
    return reference_stages(checkpoint, PROMPT, max(3, runs // 5), rate)


def _overhead(backend: Backend, runs: int) -> float:
    """The share of a patch that is spent outside the backend, on a sampled answer."""
    model = backend.bundle.model
    grid = np.zeros((1 + model.n_q, 8 * model.group_size), np.int64)
    hot = Sampling(0.9, top_p=0.95)
    # no text id is the empty id: every patch is text, the worst case for our share
    request = Request(grid, hot, hot, max_new=runs + 1)
    steps = list(generate(backend, request, empty_id=-1))[1:]
    took = sum(s.seconds for s in steps)
    return 1 - sum(s.backend_seconds for s in steps) / took


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
