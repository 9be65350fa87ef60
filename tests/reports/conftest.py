"""A tiny model's reference, what it computes on one clip and one text, and its bundle."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mimo_edge.parity.bisect import Bisection
from mimo_edge.parity.bundle_side import BundleSide, precision
from mimo_edge.parity.findings import Bisected, Finding, Layer
from mimo_edge.parity.judge import Verdict, judge
from mimo_edge.parity.observe import Inputs, follow, lead
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.reference_side import ReferenceSide
from mimo_edge.parity.report_files import write_report
from mimo_edge.parity.thresholds import Thresholds
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle

from tests.bundles import exported
from tests.golden import Golden

JudgeBundle = Callable[[Path], Verdict]
BisectBundle = Callable[[Path], Bisected]


@pytest.fixture(scope="session")
def new_reference(golden: Golden) -> Callable[[], ReferenceSide]:
    lm, tokenizer = golden.folder / golden.lm_names[0], golden.folder / "audio_tokenizer"
    return lambda: ReferenceSide(lm, tokenizer, golden.folder / "text_tokenizer")


@pytest.fixture(scope="session")
def reference(new_reference: Callable[[], ReferenceSide]) -> ReferenceSide:
    return new_reference()


@pytest.fixture(scope="session")
def own(golden: Golden, reference: ReferenceSide) -> Recording:
    """What the reference computes; it leads."""
    clip = golden.npz("pipeline.npz")["wav24k"]
    return lead(reference, Inputs({"clip": clip}, ["Hello there."], max_new=8))


@pytest.fixture(scope="session")
def bundle(golden: Golden) -> Path:
    return exported(golden, golden.lm_names[0])


@pytest.fixture(scope="session")
def thresholds() -> Thresholds:
    return Thresholds.open()


@pytest.fixture(scope="session")
def judge_bundle(own: Recording, thresholds: Thresholds) -> JudgeBundle:
    def judged(path: Path) -> Verdict:
        with OrtBackend(Bundle.open(path), threads=1) as backend:
            return judge(follow(BundleSide(backend), own), own, thresholds)

    return judged


@pytest.fixture(scope="session")
def bisect_bundle(reference: ReferenceSide, own: Recording, thresholds: Thresholds) -> BisectBundle:
    def bisected(path: Path) -> Bisected:
        opened = Bundle.open(path)
        allowed = thresholds.all["layer_snr"].limits[precision(opened)]
        with OrtBackend(opened, threads=1) as backend:
            return Bisection(reference, backend, own, allowed).run()

    return bisected


@pytest.fixture(scope="session")
def clean(judge_bundle: JudgeBundle, bundle: Path) -> Iterator[Verdict]:
    yield judge_bundle(bundle)


@pytest.fixture(scope="session")
def parted(clean: Verdict, own: Recording, thresholds: Thresholds) -> Verdict:
    """A build whose free run says something else at patch 2, and whose layers were looked at."""
    arrays = dict(clean.candidate.arrays)
    free = f"free/{own.sequences[0].name}"
    arrays[free] = arrays[free].copy()
    group = own.layout.group_size
    arrays[free][0, 2 * group : 3 * group] += 1
    found = Finding("backbone, prefill", "b", "a", 20.0, 85.0, 10.0, ("w.weight",))
    bisected = Bisected((found,), (Layer("backbone, prefill", "a", float("inf"), 85.0),))
    candidate = replace(clean.candidate, arrays=arrays)
    return replace(judge(candidate, own, thresholds), bisected=bisected)


@pytest.fixture(scope="session")
def folder(clean: Verdict, parted: Verdict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "report"
    write_report(folder, [clean, parted])
    return folder
