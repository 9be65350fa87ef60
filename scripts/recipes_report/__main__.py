"""What the recipes cost: the tables of docs/quantization.md.

    python -m mimo_edge.scripts.recipes_report BUNDLE --set DIR --work DIR [--recipes NAME ...]
        [--calibration FILE] [--led N] [--seeds K] [--streamed [K]] [--quality [K]]

BUNDLE is nano in float32, DIR a set of utterances (`mimo-edge score --set`). Each recipe's bundle
is made in the work folder, led along what the float model read and said (level 5 of the ladder),
and judged by word errors. `NAME:COMPONENT` is what a recipe does to one component alone. Figures
are kept: they are taken again only if the recipe, the set or the calibration has changed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mimo_edge.engines.calibration import Calibration
from mimo_edge.engines.components import COMPONENTS
from mimo_edge.engines.quantize import bundle_parts
from mimo_edge.engines.weigh import weigh
from mimo_edge.parity.speech_score import UTTERANCES, UtteranceSet
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.scripts.progress import StageProgress
from mimo_edge.scripts.recipes_report import spoken, tables
from mimo_edge.scripts.recipes_report.led import Own
from mimo_edge.scripts.recipes_report.workshop import ALL, OWN, Figures, Subject, Workshop


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--set", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=["int8", "int4", "int4-edge"])
    parser.add_argument("--calibration", type=Path, help="for the recipes that need it")
    parser.add_argument(
        "--led", type=int, default=12, metavar="N", help="utterances of each task for level 5"
    )
    parser.add_argument("--whole", action="store_true", help="level 5 of whole recipes alone")
    parser.add_argument("--seeds", type=int, default=1, help="draws for words; 0 leaves them out")
    for option, what in (("--streamed", "words of streams"), ("--quality", "sound")):
        parser.add_argument(
            option, nargs="?", type=int, const=1, default=0, metavar="K", help=f"draws for {what}"
        )
    args = parser.parse_args(arguments)
    utterances = UtteranceSet.open(args.set)
    calibration = args.calibration and Calibration.load(args.calibration)
    workshop = Workshop(args.work, Bundle.open(args.bundle), args.set / UTTERANCES, calibration)
    subjects = [Subject.parse(text) for text in args.recipes if text != OWN]
    with StageProgress() as progress:
        if args.led:
            _level_5(subjects, workshop, utterances, progress, args.led, args.whole)
        every = [Subject(None), *subjects]
        asked = {spoken.WHOLE: args.seeds, spoken.STREAM: args.streamed, spoken.SOUND: args.quality}
        spoken.run(spoken.jobs(every, asked), workshop, utterances, progress)
    if args.seeds:
        print("\n".join(tables.speech_table(every, workshop)))
    if args.quality:
        print("\n".join(tables.sound_table(every, workshop)))
    return 0


def _level_5(
    subjects: Sequence[Subject],
    workshop: Workshop,
    utterances: UtteranceSet,
    progress: StageProgress,
    count: int,
    whole: bool,
) -> None:
    """Measure and print; of whole recipes, and of their components unless only these are wanted."""
    parts = list(bundle_parts(workshop.own))
    own: list[Own] = []  # read and said once, when the first figures are taken

    def measure(subject: Subject) -> Figures:
        if not own:
            own.append(Own(workshop.own.folder, utterances, count))
        return own[0].figures(Bundle.open(workshop.bundle(subject)))

    shares = {}
    jobs = []
    for subject in subjects:
        assert subject.recipe is not None
        found = {share.component: share for share in weigh(subject.recipe, parts, "fp32")}
        shares[subject.name] = found
        stored = [c for c in COMPONENTS if found[c].stored and subject.component == ALL]
        components = [] if whole else stored
        jobs += [Subject(subject.recipe, c) for c in components] + [subject]
    what = tables.led(count)
    left = [job for job in jobs if workshop.known(job, what) is None]
    for place, job in enumerate(left):
        progress.report("leading along what was said", place, len(left), "bundles")
        workshop.figures(job, what, lambda job=job: measure(job))  # type: ignore[misc]
    for subject in subjects:
        found = shares[subject.name]
        print("\n".join(tables.component_table(subject, found, workshop, count)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
