"""`mimo-edge validate`: hold builds against the model, stage by stage, and write a report.

Each side is a bundle, a recording that `mimo-edge record` wrote, or, after --against, a checkpoint.
"""

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mimo_edge.parity.bundle_side import BundleSide
from mimo_edge.parity.judge import Verdict, judge
from mimo_edge.parity.observe import follow, lead
from mimo_edge.parity.recording import Recording, is_recording
from mimo_edge.parity.report_files import check_folder, table, write_report
from mimo_edge.parity.side import Side
from mimo_edge.parity.sound_checks import Heard, sound_checks
from mimo_edge.parity.sound_quality import check_installed
from mimo_edge.parity.speech_score import UtteranceSet
from mimo_edge.parity.thresholds import Thresholds
from mimo_edge.parity.word_checks import word_checks, word_errors
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, InputError, ParityError
from mimo_edge.runtime.bundle.files import write_text
from mimo_edge.runtime.bundle.lock import locked
from mimo_edge.runtime.bundle.manifest import MANIFEST
from mimo_edge.runtime.bundle.requirements import install
from mimo_edge.scripts.backend_arguments import add_backend_arguments, opening
from mimo_edge.scripts.progress import StageProgress
from mimo_edge.scripts.record import add_inputs, read_inputs
from mimo_edge.scripts.score import Score, check_same_set, read_score

Report = Callable[..., None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "examples:\n"
        "  mimo-edge validate int8 int4 --against MiMo-Audio-7B-Instruct "
        "--audio-tokenizer MiMo-Audio-Tokenizer --audio *.flac --text texts.txt -o report\n"
        "  mimo-edge validate rec --against MiMo-Audio-7B-Instruct "
        "--audio-tokenizer MiMo-Audio-Tokenizer -o report"
    )
    parser.add_argument("candidates", metavar="CANDIDATE", type=Path, nargs="+")
    parser.add_argument("--against", metavar="SIDE", type=Path, required=True)
    parser.add_argument("--audio-tokenizer", metavar="DIR", type=Path, help="of a checkpoint")
    parser.add_argument(
        "--text-tokenizer", metavar="DIR", type=Path, help="default: the checkpoint's folder"
    )
    add_inputs(parser)
    parser.add_argument(
        "--words",
        metavar="DIR",
        type=Path,
        help="also count word errors on a set of utterances, as `mimo-edge score` does: bundles",
    )
    parser.add_argument(
        "--own-words",
        metavar="FILE",
        type=Path,
        help="the model's own, by `mimo-edge score --record` (default: counted, if it is a bundle)",
    )
    parser.add_argument(
        "--sound",
        action="store_true",
        help="with --words: also how what it speaks sounds to two networks (extra `quality`), "
        "judged by the model's own if that is a bundle",
    )
    add_backend_arguments(parser)
    parser.add_argument(
        "--thresholds", metavar="FILE", type=Path, help="limits in place of the defaults"
    )
    parser.add_argument(
        "--bisect",
        action="store_true",
        help="also name the first layer that is out of tolerance: bundles against a checkpoint. "
        "On ort-cpu all layers are compared; with a TensorRT backend engines are built that show "
        "one state each, of the piece that fails first",
    )
    parser.add_argument(
        "--bisect-memory",
        metavar="MB",
        type=int,
        default=256,
        help="of --bisect on ort-cpu, for states that are compared at once (default: 256)",
    )
    parser.add_argument(
        "--bisect-bundle",
        metavar="DIR",
        type=Path,
        help="of --bisect, where the candidate is a recording that TensorRT made elsewhere: its "
        "bundle. An engine that shows its layers is built, to be run where the recording was made",
    )
    parser.add_argument(
        "--sensitivity",
        metavar="RECIPE",
        help="also rank the components of this recipe by what leaving each in floats wins: one "
        "candidate, a float bundle, on ort-cpu",
    )
    parser.add_argument(
        "--write-recipe",
        metavar="FILE",
        type=Path,
        help="of --sensitivity: a mixed recipe, the best components left in floats",
    )
    parser.add_argument(
        "--spend",
        metavar="MB",
        type=float,
        default=100.0,
        help="that the mixed recipe may weigh more (default: 100)",
    )
    parser.add_argument("-o", "--output", metavar="REPORT", type=Path, required=True)


def run(args: argparse.Namespace) -> int:
    """Judge and write the report. Returns the exit code; raises ParityError if a check fails."""
    check_folder(args.output)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with locked(args.output):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    if args.bisect:
        for package in ("onnx", "torch"):
            if importlib.util.find_spec(package) is None:
                raise EnvironmentProblem(
                    f"--bisect needs the package {package}. Install it: {install('export')}"
                )
        from mimo_edge.scripts import bisecting  # onnx, torch

        bisecting.check(args)
    elif args.bisect_bundle is not None:
        raise InputError("--bisect-bundle is of --bisect; give that, too")
    if args.sensitivity is not None:
        _check_sensitivity(args)
    if args.sound:
        _check_sound(args)
    thresholds = Thresholds.open(args.thresholds)
    with StageProgress() as progress:
        pairs = _record_all(args, progress.report)
        verdicts = [judge(candidate, own, thresholds) for candidate, own in pairs]
        if args.words is not None:
            _add_words(args, verdicts, progress.report)
        if args.bisect:
            verdicts = [
                bisecting.bisected(args, path, verdict, thresholds, progress.report)
                for path, verdict in zip(args.candidates, verdicts, strict=True)
            ]
        gains = None
        if args.sensitivity is not None:
            gains = _sensitivity(args, verdicts[0], progress.report)
    data = write_report(args.output, verdicts)
    print(table(data))
    if gains is not None:
        print(gains)
    print(f"\n{args.output / 'report.html'}")
    failed = [v.candidate.identity["name"] for v in verdicts if not v.passed]
    if failed:
        raise ParityError(f"parity failed: {', '.join(failed)}; {args.output} says where")
    return 0


def _record_all(args: argparse.Namespace, on_progress: Report) -> list[tuple[Recording, Recording]]:
    """(candidate, model) of each candidate, on the same inputs."""
    own: Recording | None = None
    pairs: list[tuple[Recording, Recording]] = []
    for path in args.candidates:
        if is_recording(path):
            candidate = Recording.open(path)
            if is_recording(args.against):
                pairs.append((candidate, Recording.open(args.against)))
            else:
                with _side(args, args.against) as side:
                    pairs.append((candidate, follow(side, candidate, on_progress)))
            continue
        if own is None:
            own = _model(args, on_progress)
        with _side(args, path) as side:
            pairs.append((follow(side, own, on_progress), own))
    return pairs


def _model(args: argparse.Namespace, on_progress: Report) -> Recording:
    """What bundles are held against, which makes the inputs too."""
    if is_recording(args.against):
        return Recording.open(args.against)
    with _side(args, args.against) as side:
        return lead(side, read_inputs(args, side.layout.sampling_rate), on_progress)


@contextmanager
def _side(args: argparse.Namespace, path: Path) -> Iterator[Side]:
    """A bundle on the backend, or a checkpoint."""
    if (path / MANIFEST).is_file():
        bundle = Bundle.open(path, verify=not args.no_verify)
        with open_backend(args.backend, bundle, **opening(args)) as backend:
            judges = path == args.against and bundle.speaks
            if judges and isinstance(backend, OrtBackend):
                from mimo_edge.parity.scored_side import ScoredBundleSide  # onnx

                yield ScoredBundleSide(backend, args.threads)
            else:
                yield BundleSide(backend)
        return
    if args.audio_tokenizer is None:
        raise InputError(
            f"{path} is no bundle and no recording. If it is a checkpoint, say which audio "
            "tokenizer belongs to it: --audio-tokenizer DIR"
        )
    from mimo_edge.parity.reference_side import ReferenceSide  # torch, which bundles do not need

    yield ReferenceSide(path, args.audio_tokenizer, args.text_tokenizer)


def _add_words(args: argparse.Namespace, verdicts: list[Verdict], on_progress: Report) -> None:
    """Checks of what bundles say and hear, and of how it sounds."""
    utterances = UtteranceSet.open(args.words)
    own: Score | None = None
    own_heard: Heard | None = None
    if args.own_words is not None:
        own = read_score(args.own_words)
        check_same_set(own, {task: errors.words for task, errors in utterances.said().items()})
    if (args.against / MANIFEST).is_file() and (own is None or args.sound):
        counted, own_heard = _speech(args, args.against, utterances)
        own = own or counted
    for number, (path, verdict) in enumerate(zip(args.candidates, verdicts, strict=True)):
        on_progress("counting words", number, len(verdicts), "builds")
        if (path / MANIFEST).is_file():
            score, heard = _speech(args, path, utterances)
            verdict.checks.extend(word_checks(score, own))
            if heard is not None:
                verdict.checks.extend(sound_checks(heard, own_heard))


def _speech(
    args: argparse.Namespace, path: Path, utterances: UtteranceSet
) -> tuple[Score, Heard | None]:
    """What a bundle gets wrong, and how it sounds if that is asked for."""
    heard = Heard() if args.sound else None
    bundle = Bundle.open(path, verify=False)
    with open_backend(args.backend, bundle, **opening(args)) as backend:
        return word_errors(backend, utterances, heard), heard


def _check_sound(args: argparse.Namespace) -> None:
    if args.words is None:
        raise InputError("--sound hears what is spoken for --words DIR; give that, too")
    check_installed()


def _check_sensitivity(args: argparse.Namespace) -> None:
    bundle = len(args.candidates) == 1 and (args.candidates[0] / MANIFEST).is_file()
    file = args.write_recipe
    if args.backend != "ort-cpu" or not bundle or (file is not None and file.suffix != ".toml"):
        raise InputError(
            "--sensitivity quantises a float bundle in many ways: give one candidate, that bundle, "
            "and --backend ort-cpu; a recipe is written into a .toml file"
        )


def _sensitivity(args: argparse.Namespace, verdict: Verdict, on_progress: Report) -> str:
    """The table for people; writes the mixed recipe if one is asked for."""
    from mimo_edge.engines import recipe
    from mimo_edge.engines.recipe_text import dump
    from mimo_edge.parity.sensitivity import rank, spend, table_of_gains  # onnx

    chosen = recipe.load(args.sensitivity)
    bundle = Bundle.open(args.candidates[0], verify=False)
    gains = rank(bundle, chosen, verdict.own, args.threads, on_progress)
    if args.write_recipe is not None:
        mixed = spend(chosen, gains, round(args.spend * 1e6), args.write_recipe.stem)
        write_text(args.write_recipe, dump(mixed))
    return table_of_gains(chosen.name, gains)
