"""`mimo-edge bench`: what each stage of a bundle takes here, and how far that is from the bound."""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.audio.pacing import GrowingChunks, rehearse
from mimo_edge.runtime.audio.player import Player
from mimo_edge.runtime.backends.base import AudioPieces, Ints, RowStates
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.dtypes import PRECISIONS
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.generation.loop import generate
from mimo_edge.runtime.generation.request import Request
from mimo_edge.scripts.backend_arguments import add_backend_arguments, opening
from mimo_edge.scripts.machine import read_rate, seconds_of

PROMPT = 64  # patches
SPEECH_SECONDS = 4
STREAMED = 100  # patches: 16 seconds


@dataclass(frozen=True)
class Stage:
    """Medians of one stage; `weight_mb` is what it must read of the weights, `bound_ms` that over
    the measured read rate of this memory."""

    stage: str
    median_ms: float
    fastest_ms: float
    weight_mb: float
    bound_ms: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    add_backend_arguments(parser, verify=False)
    parser.add_argument("--rows", metavar="N", type=int, default=1, help="rows that share a step")
    parser.add_argument("--runs", metavar="N", type=int, default=30)
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Measure and print. Returns the exit code."""
    for name, value in (("--runs", args.runs), ("--rows", args.rows)):
        if value < 1:
            raise InputError(f"{name} {value} is too small: give 1 or more")
    bundle = Bundle.open(args.bundle, verify=False)
    rate = read_rate(args.threads)
    with open_backend(args.backend, bundle, **opening(args)) as backend:
        model, rng = bundle.model, np.random.default_rng(0)
        wav = rng.normal(0, 0.1, SPEECH_SECONDS * model.sampling_rate).astype(np.float32)
        mel, codes = backend.mel(wav), codec.encode(backend, wav)
        lengths = np.array([codes.shape[1]], np.int64)
        rows, n = args.rows, args.runs
        states = backend.new_rows(rows)
        text = np.zeros(PROMPT, np.int64)
        patches = np.resize(codes, (PROMPT, model.n_q, model.group_size)) % min(model.empty_codes)
        for row in range(rows):
            states.extend(row, text, patches)
        one = np.zeros(rows, np.int64), patches[:1].repeat(rows, 0), np.zeros(rows, bool)
        patch = (rows, model.group_size, model.n_q)
        uniforms = rng.random(patch, np.float32)
        settings = (
            np.full(rows, 0.9, np.float32),
            np.zeros(rows, np.int64),
            np.full(rows, 0.95, np.float32),
        )

        def read(*pieces: str, positions: int = 0) -> int:
            return sum(weights_read(bundle, piece, positions) for piece in pieces)

        language = "patch_encoder", "backbone"
        calls: dict[str, tuple[int, Callable[[], object]]] = {
            "mel, 4 s": (read("mel"), lambda: backend.mel(wav)),
            "tokenizer_encoder, 4 s": (read("tokenizer_encoder"), lambda: backend.encode(mel)),
            f"prefill, {PROMPT} patches": (
                read(*language, positions=PROMPT),
                lambda: _prefill(backend.new_rows(1), text, patches),
            ),
            f"step, {rows} rows": (read(*language, positions=rows), lambda: states.step(0, *one)),
            f"patch_decoder, {rows} rows": (
                read("patch_decoder"),
                lambda: states.draw_codes(0, uniforms, *settings),
            ),
            "tokenizer_decoder, 4 s": (
                read("tokenizer_decoder"),
                lambda: backend.decode(codes[None], lengths),
            ),
        }
        stages = [_measure(name, call, n, weights, rate) for name, (weights, call) in calls.items()]
        share = _overhead(backend, n)
        step = sum(s.median_ms for s in stages if s.stage.startswith(("step", "patch_decoder")))
        prefill = sum(s.median_ms for s in stages if s.stage.startswith("prefill"))
        player = rehearse_stream(backend, step / 1e3, prefill / 1e3)
        described = backend.describe()
    if args.json:
        raw = {"backend": described, "read_gb_per_s": rate / 1e9, "overhead_share": share}
        raw |= {"player": dataclasses.asdict(player)}
        print(json.dumps(raw | {"stages": [dataclasses.asdict(s) for s in stages]}))
        return 0
    print(f"{described}; memory read {rate / 1e9:.1f} GB/s; medians of {n} runs\n")
    print(f"{'stage':24} {'median':>10} {'fastest':>10} {'weights':>10} {'bound':>9}")
    for s in stages:
        print(
            f"{s.stage:24} {s.median_ms:7.2f} ms {s.fastest_ms:7.2f} ms "
            f"{s.weight_mb:7.1f} MB {s.bound_ms:6.2f} ms"
        )
    print(
        f"\nof a generated patch, {100 * share:.0f} % is our Python and the text sampler, "
        f"{100 - 100 * share:.0f} % the backend"
    )
    first = player.first_sound or 0.0
    print(
        f"{STREAMED} patches as a stream: first sound after {1e3 * first:.0f} ms, "
        f"{len(player.underruns)} underruns, {player.silence:.2f} s of silence in them"
    )
    return 0


def rehearse_stream(backend: AudioPieces, patch_seconds: float, start: float) -> Player:
    """A stream whose patches take so long, decoded here and now, to a player in thought."""
    model, rng = backend.bundle.model, np.random.default_rng(0)
    decoder = codec.open_stream(backend)

    def push(patches: int) -> float:
        shape = (model.n_q, patches * model.group_size)
        return len(decoder.push(rng.integers(0, min(model.empty_codes), shape)))

    def decode(patches: int, taken: int) -> tuple[float, float]:
        began = time.perf_counter()
        samples = push(patches)
        return time.perf_counter() - began, samples / model.sampling_rate

    try:
        push(2)
        decoder.finish()  # loaded, and as new
        return rehearse(GrowingChunks(), STREAMED, patch_seconds, decode, start)
    finally:
        decoder.close()


def _measure(
    name: str, call: Callable[[], object], runs: int, weight_bytes: int, rate: float
) -> Stage:
    call()
    took = [1e3 * seconds_of(call) for _ in range(runs)]
    bound = 1e3 * weight_bytes / rate
    return Stage(name, statistics.median(took), min(took), weight_bytes / 1e6, bound)


def _prefill(states: RowStates, text_ids: Ints, codes: Ints) -> None:
    states.extend(0, text_ids, codes)
    states.close()


def weights_read(bundle: Bundle, piece: str, positions: int) -> int:
    """Bytes of weights that one call of a piece must read.

    Of the text embedding that is a row for each position; the patch decoder reads its weights in
    every one of its sub-steps. Embeddings of codes are small and count whole.
    """
    model, spec = bundle.model, bundle.piece(piece)
    stored = bundle.weights(piece).bytes
    if piece == "patch_encoder":
        row = model.hidden_size * PRECISIONS[spec.compute].bytes
        return max(0, stored - (model.vocab_size - positions) * row)
    if piece == "patch_decoder":
        return stored * model.sub_steps
    return stored


def _overhead(backend, runs: int) -> float:  # type: ignore[no-untyped-def]
    """The share of a patch that is spent outside the backend, on a sampled answer."""
    model = backend.bundle.model
    grid = np.zeros((1 + model.n_q, 8 * model.group_size), np.int64)
    hot = Sampling(0.9, top_p=0.95)
    # no text id is the empty id: every patch is text, the worst case for our share
    request = Request(grid, hot, hot, max_new=runs + 1)
    steps = list(generate(backend, request, empty_id=-1))[1:]
    took = sum(s.seconds for s in steps)
    return 1 - sum(s.backend_seconds for s in steps) / took
