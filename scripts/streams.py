"""`mimo-edge streams`: what each way of streaming costs in sound and in time, as a table."""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mimo_edge.parity.speech_score import LONGEST, Judge, UtteranceSet
from mimo_edge.parity.stream_quality import Quality, Setting, stream
from mimo_edge.parity.word_errors import WordErrors
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.audio.codec import STATEFUL, WINDOWED
from mimo_edge.runtime.backends.base import Backend, Ints
from mimo_edge.runtime.backends.opening import BACKENDS, open_backend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.progress import StageProgress
from mimo_edge.scripts.score import UTTERANCES

Row = dict[str, str]
AHEAD = (0, 2, 4, 8, 40)  # frames
CHUNKS = (1, 2, 6)  # patches


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument(
        "--set", metavar="DIR", type=Path, help="utterances whose texts are spoken and heard back"
    )
    parser.add_argument(
        "--seconds",
        metavar="N",
        type=float,
        help="measure only the time, over so much speech of random codes (for random weights)",
    )
    parser.add_argument("--draws", metavar="N", type=int, default=1, help="times a text is spoken")
    for name, default in (("ahead", AHEAD), ("chunks", CHUNKS)):
        parser.add_argument(f"--{name}", metavar="N", type=int, nargs="+", default=default)
    parser.add_argument("--backend", choices=BACKENDS, default="ort-cpu")
    parser.add_argument("--threads", metavar="N", type=int)
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Measure and print. Returns the exit code."""
    if (args.seconds is not None and args.seconds <= 0) or args.draws < 1:
        raise InputError("give --seconds above 0, and --draws of 1 or more")
    settings = [
        Setting(kind, ahead, chunk)
        for kind in (WINDOWED, STATEFUL)
        for ahead in args.ahead
        for chunk in args.chunks
    ]
    rows = _times(args, settings) if args.seconds is not None else _sounds(args, settings)
    if args.json:
        print(json.dumps(rows))
        return 0
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in ({key: key for key in widths}, *rows):
        print("  ".join(f"{row[key]!s:>{width}}" for key, width in widths.items()))
    return 0


def _times(args: argparse.Namespace, settings: Sequence[Setting]) -> list[Row]:
    """Seconds of work per second of speech, the faster of two runs."""
    bundle = Bundle.open(args.bundle, verify=False)
    model, rng = bundle.model, np.random.default_rng(0)
    frames = int(args.seconds * model.sampling_rate / model.samples_per_frame)
    codes = np.stack([rng.integers(0, empty, frames) for empty in model.empty_codes])
    with open_backend(args.backend, bundle, args.threads) as backend:
        rows = []
        for setting in settings:
            stream(setting, backend, codes[:, : 2 * model.group_size])  # load and warm up
            took = min(_seconds(setting, backend, codes) for _ in range(2))
            row: Row = _named(setting, model.group_size)
            speech = frames * model.samples_per_frame / model.sampling_rate
            rows.append(row | {"seconds per second": f"{took / speech:.3f}"})
        return rows


def _seconds(setting: Setting, backend: Backend, codes: Ints) -> float:
    began = time.perf_counter()
    stream(setting, backend, codes)
    return time.perf_counter() - began


def _sounds(args: argparse.Namespace, settings: Sequence[Setting]) -> list[Row]:
    utterances = UtteranceSet.open(args.set or UTTERANCES)
    texts = [*utterances.tts, *(utterance.text for utterance in utterances.dialogue)]
    with MimoAudio.open(args.bundle, args.backend, threads=args.threads) as model:
        judge = Judge(model)
        spoken = _spoken(model, texts, args.draws)
        group_size = model.backend.bundle.model.group_size
        found, own = [Quality(setting) for setting in settings], WordErrors()
        with StageProgress() as progress:
            for number, (text, codes) in enumerate(spoken, start=1):
                own.add(judge.transcribe(codec.decode(model.backend, codes)), text)
                for quality in found:
                    quality.add(model.backend, text, codes, judge.transcribe)
                progress.report("streaming", number, len(texts) * args.draws, "utterances")
    whole: Row = dict.fromkeys(_sound(found[0], group_size), "")
    whole |= {"stream": "whole decode", "words wrong": f"{own.edits} of {own.words}"}
    return [whole, *(_sound(quality, group_size) for quality in found)]


def _spoken(model: MimoAudio, texts: Sequence[str], draws: int) -> Iterator[tuple[str, Ints]]:
    """Each text and the codes that the model speaks it with; silence is left out."""
    for seed, text in enumerate(text for text in texts for _ in range(draws)):
        options = Options(seed=seed, max_new=LONGEST)
        codes = model.tts(text, options=options).result().codes
        if codes.shape[1]:
            yield text, codes


def _named(setting: Setting, group_size: int) -> Row:
    return {
        "stream": setting.kind,
        "ahead": str(setting.ahead),
        "chunk": str(setting.chunk),
        "first sound": str(setting.first_sound(group_size)),
    }


def _sound(quality: Quality, group_size: int) -> Row:
    def mean(values: Sequence[float], digits: int) -> str:
        return f"{np.mean(values):.{digits}f}" if values else "-"

    return _named(quality.setting, group_size) | {
        "words wrong": f"{quality.words.edits} of {quality.words.words}",
        "SNR dB": mean(quality.snr, 1),
        "worst": f"{min(quality.snr):.1f}",
        "log-mel": mean(quality.mel_distance, 4),
        "seam dB": mean(quality.seam, 1),
    }
