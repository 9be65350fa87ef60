"""Recordings: kept whole, judged again later, read by Polygraphy, and near ties in them."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.parity import recording as recording_file
from mimo_edge.parity import tolerances
from mimo_edge.parity.bundle_side import BundleSide
from mimo_edge.parity.judge import Verdict, judge
from mimo_edge.parity.observe import Inputs, follow, lead
from mimo_edge.parity.polygraphy import write_run_results
from mimo_edge.parity.recording import ARRAYS, HEADER, Recording
from mimo_edge.parity.reference_side import ReferenceSide
from mimo_edge.parity.report_data import plain, report
from mimo_edge.parity.scored_side import ScoredBundleSide
from mimo_edge.parity.thresholds import Thresholds
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.arrays import packed, read_arrays
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError

from tests.golden import Golden


def figures(verdict: Verdict) -> object:
    return plain(report([verdict], "", ""))


def test_a_recording_gives_the_figures_of_the_run(
    tmp_path: Path, clean: Verdict, own: Recording, thresholds: Thresholds
) -> None:
    for name, each in (("candidate", clean.candidate), ("own", own)):
        each.save(tmp_path / name)
    again = judge(
        Recording.open(tmp_path / "candidate"), Recording.open(tmp_path / "own"), thresholds
    )
    assert figures(again) == figures(clean)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["candidate", "own"]


def test_a_recording_of_the_device_leads_the_reference(
    golden: Golden, bundle: Path, reference: ReferenceSide, thresholds: Thresholds
) -> None:
    """The device hears, builds prompts and answers; the reference follows what it did."""
    clip = golden.npz("pipeline.npz")["wav24k"]
    with OrtBackend(Bundle.open(bundle), threads=1) as backend:
        candidate = lead(BundleSide(backend), Inputs({"clip": clip}, [], max_new=6))
    verdict = judge(candidate, follow(reference, candidate), thresholds)
    assert verdict.passed and candidate.lead == candidate.identity["id"]


def test_a_bundle_as_the_model_gives_the_scores_of_the_reference(
    bundle: Path, own: Recording
) -> None:
    """So that near ties of codes are known against a bundle too."""
    with OrtBackend(Bundle.open(bundle), threads=1) as backend:
        found = follow(ScoredBundleSide(backend, threads=1), own)
    scores = [name for name in own.arrays if name.startswith("scores/")]
    assert len(scores) == len(own.sequences) * own.layout.n_q
    for name in scores:
        np.testing.assert_allclose(
            found.arrays[name], own.arrays[name], atol=tolerances.LOCAL_HEADS.absolute, rtol=0
        )


def with_near_tie(own: Recording, gap: float) -> tuple[Recording, Recording]:
    """The model's two best texts are `gap` apart at a step, and the candidate's the other way."""
    name = next(s.name for s in own.sequences if s.text.greedy)
    scores = own.arrays[f"logits/{name}"].copy()
    second, best = np.argsort(scores[3])[-2:]
    scores[3, second] = scores[3, best] - gap
    other = scores.copy()
    other[3, [second, best]] = other[3, [best, second]]
    mine, theirs = (
        dataclasses.replace(own, arrays={**own.arrays, f"logits/{name}": s})
        for s in (other, scores)
    )
    return mine, theirs


def test_a_near_tie_alone_does_not_fail(own: Recording, thresholds: Thresholds) -> None:
    limit = thresholds.margin("near_tie_scores", "fp32")
    verdict = judge(*with_near_tie(own, limit / 4), thresholds)
    text = next(check for check in verdict.checks if check.name == "text_agreement")
    assert verdict.passed and (text.near_ties, text.value) == (1, 1.0)
    verdict = judge(*with_near_tie(own, limit * 4), thresholds)
    text = next(check for check in verdict.checks if check.name == "text_agreement")
    assert text.passed is False and text.near_ties == 0


def test_recordings_of_other_inputs_are_not_compared(
    clean: Verdict, own: Recording, thresholds: Thresholds
) -> None:
    other = dataclasses.replace(own, lead="somebody else")
    with pytest.raises(InputError, match="different inputs"):
        judge(clean.candidate, other, thresholds)


@pytest.mark.parametrize("file", [HEADER, ARRAYS])
def test_a_damaged_recording_is_refused(tmp_path: Path, own: Recording, file: str) -> None:
    own.save(tmp_path / "rec")
    path = tmp_path / "rec" / file
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="not a whole recording"):
        Recording.open(tmp_path / "rec")


def test_a_recording_is_bounded_and_replaces_nothing(
    tmp_path: Path, own: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.save(tmp_path / "rec")
    with pytest.raises(InputError, match="exists already"):
        own.save(tmp_path / "rec")
    monkeypatch.setattr(recording_file, "LIMIT", 1 << 20)
    with pytest.raises(InputError, match="fewer or shorter"):
        own.save(tmp_path / "large")
    assert [p.name for p in tmp_path.iterdir()] == ["rec"]


def test_polygraphy_reads_and_compares_recordings(
    tmp_path: Path, clean: Verdict, own: Recording
) -> None:
    """Its own commands: what is in a file, and two files against each other."""
    for name, each in (("mine", clean.candidate), ("own", own)):
        write_run_results(each, tmp_path / f"{name}.json")
    command = [
        sys.executable,
        "-c",
        "import sys; from polygraphy.tools import main; sys.exit(main())",
    ]
    inspect = [*command, "inspect", "data", str(tmp_path / "mine.json")]
    shown = subprocess.run(inspect, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert clean.candidate.identity["runs_on"] in shown.stdout and "mel/clip" in shown.stdout
    compare = [
        *command,
        "run",
        "--load-outputs",
        *(str(tmp_path / f"{n}.json") for n in ("mine", "own")),
    ]
    compared = subprocess.run([*compare, "--atol", "0.01"], capture_output=True, text=True)
    assert compared.returncode == 0, compared.stdout + compared.stderr


def test_only_numbers_are_written(tmp_path: Path) -> None:
    """Whatever their names are."""
    arrays = {"file": np.arange(3), "a/b": np.ones((2, 0), np.float16), "allow_pickle": np.array(1)}
    (tmp_path / "arrays").write_bytes(packed(arrays))
    read = read_arrays(tmp_path / "arrays", 1 << 20)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    for wrong in (np.array([None]), np.array(["words"]), np.zeros(2, "V2"), np.zeros(2, complex)):
        with pytest.raises(TypeError, match="wrong holds"):
            packed({"wrong": wrong})


def test_to_record_needs_neither_torch_nor_onnx(tmp_path: Path) -> None:
    code = "import sys, mimo_edge.scripts.record; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = set(run.stdout.split())
    assert "mimo_edge.parity.bundle_side" in loaded and not loaded & {"torch", "onnx"}
