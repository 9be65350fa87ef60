"""The steps of a run, in order of value; each writes what it finds as it goes."""

import contextlib
import io
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.scripts import cli
from mimo_edge.scripts.gpu.placement import RECORDED, record_placements
from mimo_edge.scripts.gpu.records import Records, read_records
from mimo_edge.scripts.gpu.runner import DONE, Planned, python
from mimo_edge.scripts.gpu.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent  # of the tree, which `site` links to
SCORE, UTTERANCES = ROOT / "assets" / "nano" / "score.json", ROOT / "assets" / "utterances"
FILL = "fill-"  # and a model: the name of that step
OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED)\s+(.*)$", re.MULTILINE)
# seconds of each; of a model there are two steps, `fill` and `measure`
SECONDS = {"placement": 40, "goldens": 60, "score": 90, "baseline": 50}
FIRST_MODEL, LATER_MODEL = {"fill": 70, "measure": 110}, {"fill": 25, "measure": 75}


def plan(settings: Settings) -> list[Planned]:
    """All steps, in order. The last is the baseline: without it the figures still stand."""
    models = []
    for number, model in enumerate(settings.models):
        seconds = LATER_MODEL if number else FIRST_MODEL
        models += [Planned(f"{step}-{model}", most) for step, most in seconds.items()]
    first = [Planned(step, SECONDS[step]) for step in ("placement", "goldens", "score")]
    return [*first, *models, Planned("baseline", SECONDS["baseline"])]


def run_step(name: str, settings: Settings) -> bool:
    """Do one; returns whether all was as it should be."""
    if settings.device == "cuda":
        import torch  # it brings the CUDA libraries into the process

        assert torch.cuda.is_available(), "PyTorch sees no GPU"
    records = Records(settings.out, name)
    step, _, model = name.partition("-")
    steps: dict[str, Callable[[], bool]] = {
        "placement": lambda: _placement(settings, records),
        "goldens": lambda: _goldens(settings, records),
        "score": lambda: _score(settings, records),
        "fill": lambda: _fill(settings, records, model),
        "measure": lambda: _measure(settings, records, model),
        "baseline": lambda: _baseline(settings, records),
    }
    return steps[step]()


def _placement(settings: Settings, records: Records) -> bool:
    well = True
    for name in ("golden", "nano"):
        bundle = Bundle.open(settings.kit / "bundles" / name, verify=False)
        with OrtBackend(bundle, settings.device, session_options=RECORDED) as backend:
            records.add("onnxruntime", backend.describe())
            well = record_placements(backend, name, records) and well
    return well


def _goldens(settings: Settings, records: Records) -> bool:
    bundle = settings.kit / "bundles" / "golden"
    options = ["-m", "gpu", "-q", "-rA", "-p", "no:cacheprovider", "--tb=short"]
    options += ["--cuda-bundle", str(bundle), "--cuda-device", settings.device]
    options += ["-k", settings.tests] if settings.tests else []
    options += ["--import-mode=append"]  # a tree that is not installed is imported from `site`
    command = python("-m", "pytest", *options, "tests/gpu/test_ort_cuda.py")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="\n")
    found = OUTCOME.findall(done.stdout)
    for outcome, test in found:
        where, _, error = test.partition(" - ")
        records.add(where.split("::")[-1], f"{outcome.lower()} {error}".strip())
    return done.returncode == 0 and bool(found)


def _score(settings: Settings, records: Records) -> bool:
    bundle = settings.kit / "bundles" / "nano"
    command = ["score", str(bundle), "--backend", settings.backend, "--no-verify", "--json"]
    command += ["--set", str(settings.utterances or UTTERANCES)]
    command += ["--against", str(settings.against or SCORE)]
    began, said = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cli.main(command)
    print(said.getvalue())
    score = json.loads(said.getvalue())
    for task, errors in score.items():
        if task != "utterances":
            records.add(task, f"{errors['edits']} of {errors['words']} words wrong")
    records.add("against the model's own score", "as well" if code == 0 else f"exit code {code}")
    records.add("all of it", time.perf_counter() - began, "s")
    return code == 0


def _fill(settings: Settings, records: Records, model: str) -> bool:
    from mimo_edge.scripts.gpu.fill import fill

    began = time.perf_counter()
    written = fill(settings.kit / "hollow" / model, settings.work / model)
    records.add("random weights", written / 1e9, "GB")
    records.add("made in", time.perf_counter() - began, "s")
    return True


def _measure(settings: Settings, records: Records, model: str) -> bool:
    """Also what was filled in part, which costs as much as the whole; but that is written down."""
    from mimo_edge.scripts.gpu.measure import Measure

    filling = {record.what for record in read_records(settings.out) if record.step == FILL + model}
    if DONE not in filling:
        records.add("weights", "not all were drawn: the others are zeros")
    return Measure(settings.work / model, settings, records).all()


def _baseline(settings: Settings, records: Records) -> bool:
    from mimo_edge.scripts.gpu.baseline import Baseline

    Baseline(settings, records).all()
    return True
