"""`mimo-edge score`: how well a bundle hears and speaks, in word errors.

It transcribes recordings, speaks texts and answers questions, and listens to its own speech. The
same utterances and seeds give the same score on the same build, so a quantised build is judged by
`--against` the score that the model itself has.
"""

import argparse
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, astuple
from pathlib import Path

from mimo_edge.parity.speech_score import (
    Judge,
    Streaming,
    UtteranceSet,
    Verdict,
    totals,
)
from mimo_edge.parity.tolerances import SPEECH_POINTS, speech_edits
from mimo_edge.parity.word_errors import WordErrors
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.audio.write import write_audio
from mimo_edge.runtime.bundle.errors import MALFORMED, InputError, ParityError
from mimo_edge.runtime.bundle.files import read_text, write_text
from mimo_edge.runtime.bundle.lock import locked
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.backend_arguments import add_backend_arguments, opening, verify
from mimo_edge.scripts.progress import StageProgress

Score = dict[str, WordErrors]  # by task
UTTERANCES = Path(__file__).parent.parent / "assets" / "utterances"
DID = {
    "asr": "recordings transcribed",
    "tts": "texts spoken, heard back",
    "dialogue": "spoken questions, the answer heard back",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "A set of utterances is a folder with utterances.json: "
        '{"asr": [{"audio", "text"}], "tts": [text], "dialogue": [{"audio", "answer"}]}.'
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument(
        "--set",
        metavar="DIR",
        type=Path,
        help="utterances (default: nano's, assets/utterances of the repository)",
    )
    add_backend_arguments(parser)
    parser.add_argument("--stream", action="store_true", help="judge streamed speech")
    parser.add_argument("--codec-stream", choices=codec.STREAMS, help="see `mimo-edge run --help`")
    for name in ("lookahead", "left-overlap", "right-overlap"):
        parser.add_argument(f"--{name}", metavar="N", type=int)
    parser.add_argument("--wavs", metavar="DIR", type=Path, help="keep what was spoken")
    parser.add_argument("--record", metavar="FILE", type=Path, help="write the score, to compare")
    parser.add_argument(
        "--against",
        metavar="FILE",
        type=Path,
        help=f"a recorded score; {100 * SPEECH_POINTS:g} points worse, and more than chance "
        "explains, is exit code 5",
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Judge and print. Returns the exit code; raises ParityError if it is worse than `against`."""
    utterances = UtteranceSet.open(_default_set() if args.set is None else args.set)
    own = None if args.against is None else read_score(args.against)
    if own is not None:
        check_same_set(own, {task: errors.words for task, errors in utterances.said().items()})
    for option, output in (("--record", args.record), ("--wavs", args.wavs)):
        if output is not None:
            _check_writable(option, output, folder=option == "--wavs")
    count = len(utterances.asr) + len(utterances.tts) + len(utterances.dialogue)
    verdicts: list[Verdict] = []
    if not args.no_verify:
        verify(args.bundle)
    with ExitStack() as held:
        for output in filter(None, (args.record, args.wavs)):
            output.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(output))
        model = held.enter_context(
            MimoAudio.open(args.bundle, args.backend, verify=not args.no_verify, **opening(args))
        )
        progress = held.enter_context(StageProgress())
        setting = args.codec_stream, args.lookahead, args.left_overlap, args.right_overlap
        judge = Judge(model, Streaming(*setting) if args.stream else None)
        for verdict in judge.all(utterances):
            verdicts.append(verdict)
            progress.report("judging", len(verdicts), count, "utterances")
            if args.wavs is not None and verdict.wav is not None:
                args.wavs.mkdir(parents=True, exist_ok=True)
                path = args.wavs / f"{len(verdicts):03}-{verdict.task}.wav"
                write_audio(path, verdict.wav, model.sampling_rate)
        score = totals(verdicts)
        print(json.dumps(as_json(score, verdicts)) if args.json else table(score, verdicts))
        if args.record is not None:
            write_score(args.record, score)
    if own is not None and (worse := losses(score, own)):
        raise ParityError("worse than the model's own score: " + "; ".join(worse))
    return 0


def check_same_set(own: Score, words: Mapping[str, int]) -> None:
    """Raises InputError unless the recorded score is of as many words in each of its tasks."""
    for task, before in own.items():
        if words.get(task, 0) != before.words:
            raise InputError(
                f"the recorded score is of another set of utterances: {before.words} words in "
                f"{task!r}, here {words.get(task, 0)}. Record it again with --record."
            )


def losses(score: Score, own: Score) -> list[str]:
    """What of a score is worse than the model's own by more than is allowed, in words."""
    check_same_set(own, {task: errors.words for task, errors in score.items()})
    found = []
    for task, before in own.items():
        now = score[task]
        allowed = speech_edits(before.edits, before.words)
        if now.edits > allowed:
            found.append(
                f"{task} {now.edits} of {now.words} words wrong, the model's own are "
                f"{before.edits} and {int(allowed)} are allowed"
            )
    return found


def table(score: Score, verdicts: Iterable[Verdict]) -> str:
    """For people: one line a task, and below it what went wrong."""
    lines = []
    for task, errors in score.items():
        lines.append(
            f"{DID[task]:40} {errors.edits:3} of {errors.words} words wrong "
            f"({100 * errors.rate:.1f} %), {errors.right} of {errors.utterances} all right"
        )
        lines += [
            f"    wanted {v.wanted!r}\n    heard  {v.heard!r}"
            for v in verdicts
            if v.task == task and v.edits
        ]
    return "\n".join(lines)


def as_json(score: Score, verdicts: Iterable[Verdict]) -> dict[str, object]:
    """For programs."""
    said = [
        {"task": v.task, "wanted": v.wanted, "heard": v.heard, "edits": v.edits} for v in verdicts
    ]
    return {t: asdict(e) | {"rate": e.rate} for t, e in score.items()} | {"utterances": said}


def write_score(path: Path, score: Score) -> None:
    """Write the counts of a score."""
    text = json.dumps({task: asdict(errors) for task, errors in score.items()}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")


def read_score(path: Path) -> Score:
    """What `write_score` wrote. Raises InputError for anything else."""
    try:
        raw = json.loads(read_text(path))
        score = {str(task): WordErrors(**counts) for task, counts in raw.items()}
        whole = all(type(n) is int and n >= 0 for e in score.values() for n in astuple(e))
        if not score or not whole:
            raise TypeError("it holds no counts")
        return score
    except MALFORMED as error:
        raise InputError(f"{path} is not a score: {error}. Write one with --record.") from error


def _default_set() -> Path:
    if not UTTERANCES.is_dir():
        raise InputError(
            "nano's utterances are in the repository and not in an installed package: run from "
            "the repository, or give --set"
        )
    return UTTERANCES


def _check_writable(option: str, path: Path, folder: bool) -> None:
    """Raises InputError now for a file or folder that could not be written after the long work."""
    place = Path(os.path.realpath(path))
    above = next(p for p in (place, *place.parents) if p.is_dir())
    right_kind = not place.exists() or (place.is_dir() if folder else place.is_file())
    # a file in the way is no folder, and the one above it would seem to do
    way = all(p.is_dir() for p in place.parents if p.exists())
    if not (right_kind and way and os.access(above, os.W_OK | os.X_OK)):
        raise InputError(
            f"{option} {path} cannot be written. Choose another {'folder' if folder else 'file'}."
        )
