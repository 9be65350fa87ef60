"""`mimo-edge record`: run a bundle through all stages and keep what it computes.

On a device that has only the runtime; `mimo-edge validate` judges it elsewhere, now or later.
"""

import argparse
from pathlib import Path

from mimo_edge.parity.bundle_side import BundleSide
from mimo_edge.parity.engine_case import look, to_json
from mimo_edge.parity.observe import Inputs, follow, lead
from mimo_edge.parity.polygraphy import write_run_results
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.side import Side
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.backends.trt import TrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import MODULES
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.files import write_text
from mimo_edge.runtime.bundle.lock import locked
from mimo_edge.scripts.backend_arguments import add_backend_arguments, opening
from mimo_edge.scripts.progress import StageProgress

MAX_NEW = 24  # patches
SEED = 1
MOST_TEXTS, MOST_CLIPS = 8, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    add_inputs(parser)
    parser.add_argument(
        "--inputs",
        metavar="RECORDING",
        type=Path,
        help="read the inputs of this recording, so that both can be judged against each other",
    )
    parser.add_argument(
        "--layers",
        metavar="DIR",
        type=Path,
        help="record nothing, but run the engine in this folder, which `mimo-edge validate "
        "--bisect` wrote: it shows its layers, and the first that is out of tolerance is named. "
        "Engines are programs: only one that you trust. -o is a file of JSON then. What is heard "
        "and read lies in the folder",
    )
    add_backend_arguments(parser)
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True)
    parser.add_argument(
        "--polygraphy",
        metavar="FILE",
        type=Path,
        help="also write it as Polygraphy's saved results, for its own commands",
    )


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """What is heard and read, the same in both commands."""
    group = parser.add_argument_group("what is heard and read")
    group.add_argument("--audio", metavar="FILE", type=Path, nargs="+", default=[])
    group.add_argument("--text", metavar="FILE", type=Path, help="texts to read aloud, one a line")
    group.add_argument(
        "--max-new", metavar="N", type=int, default=MAX_NEW, help=f"patches (default: {MAX_NEW})"
    )
    group.add_argument("--seed", metavar="N", type=int, default=SEED, help="of sampled answers")


def read_inputs(args: argparse.Namespace, rate: int) -> Inputs:
    """Raises InputError or AudioError for what cannot be used."""
    texts: list[str] = []
    if args.text is not None:
        lines = args.text.read_text(encoding="utf-8").splitlines()
        texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(texts) > MOST_TEXTS or len(args.audio) > MOST_CLIPS:
        raise InputError(
            f"{len(args.audio)} clips and {len(texts)} texts: at most {MOST_CLIPS} and "
            f"{MOST_TEXTS} go into a recording. Record several."
        )
    stems = [path.stem for path in args.audio]
    if len(set(stems)) < len(stems):
        raise InputError(
            "two of the --audio files have the same name; a recording tells them by it"
        )
    clips = {path.stem: load_audio(path, rate=rate) for path in args.audio}
    return Inputs(clips, texts, args.max_new, args.seed)


def recorded(
    side: Side, inputs: Path | None, args: argparse.Namespace, progress: StageProgress
) -> Recording:
    """What a side computes: on the inputs of another recording, or on those that `add_inputs`
    declared."""
    if inputs is not None:
        return follow(side, Recording.open(inputs), progress.report)
    return lead(side, read_inputs(args, side.layout.sampling_rate), progress.report)


def run(args: argparse.Namespace) -> int:
    """Record. Returns the exit code."""
    if args.output.exists():
        raise InputError(f"{args.output} exists already; choose another -o, or delete it")
    if args.layers is not None:
        _check_alone(args)
    bundle = Bundle.open(args.bundle, verify=not args.no_verify)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.layers is not None:
        return _look(args, bundle)
    with (
        locked(args.output),
        open_backend(args.backend, bundle, **opening(args)) as backend,
        StageProgress() as progress,
    ):
        recording = recorded(BundleSide(backend), args.inputs, args, progress)
        recording.save(args.output)
    if args.polygraphy is not None:
        write_run_results(recording, args.polygraphy)
    size = sum(array.nbytes for array in recording.arrays.values())
    print(f"{args.output}: {len(recording.arrays)} arrays, {size / 1e6:.1f} MB before packing")
    return 0


def _check_alone(args: argparse.Namespace) -> None:
    """Raises InputError for options that --layers would not heed."""
    given = {
        "--audio": bool(args.audio),
        "--text": args.text is not None,
        "--max-new": args.max_new != MAX_NEW,
        "--seed": args.seed != SEED,
        "--inputs": args.inputs is not None,
        "--polygraphy": args.polygraphy is not None,
    }
    unheeded = [option for option, is_given in given.items() if is_given]
    if unheeded:
        raise InputError(
            f"--layers records nothing, and reads what its folder holds: leave out "
            f"{', '.join(unheeded)}"
        )
    if args.backend not in MODULES:
        raise InputError(f"--layers is of engines of TensorRT: --backend {' or '.join(MODULES)}")


def _look(args: argparse.Namespace, bundle: Bundle) -> int:
    """Run the engine of `--layers`. Returns the exit code."""
    with locked(args.output), open_backend(args.backend, bundle, **opening(args)) as backend:
        assert isinstance(backend, TrtBackend)
        seen = look(args.layers, backend)
        write_text(args.output, to_json(seen))
    for each in seen:
        print(each.sentence())
        if each.weights:
            print(f"weights there: {', '.join(each.weights)}")
    if not seen:
        print("the engines of all stages are in tolerance, each on the reference's own input")
    return 0
