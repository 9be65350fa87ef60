"""Kills at any moment: what is left never looks whole and is not, and the next run goes on from it.

The normal run kills a program whose pieces take milliseconds; `-m slow` kills real exports.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import read
from mimo_edge.runtime.bundle.errors import BundleError, EngineError
from mimo_edge.runtime.bundle.files import LOCK, PART, hash_file
from mimo_edge.runtime.bundle.folders import partial_of, replaced_of
from mimo_edge.runtime.bundle.manifest import MANIFEST

from tests.foreground import heed_signals
from tests.golden import Golden

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# an export whose pieces are copies of a sound bundle's, in slices, so that a kill can come anywhere
EXPORT = """
import shutil, sys, time
from pathlib import Path
import numpy as np
from mimo_edge.engines.weight_file import Stored
from mimo_edge.export import exporter, tracers
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.files import hash_file
from mimo_edge.scripts.cli import main

whole = Bundle.open(sys.argv[1], verify=False)

def slices(path):
    content = path.read_bytes()
    for start in range(0, len(content), 1 << 19):
        yield np.frombuffer(content[start : start + (1 << 19)], np.uint8)
        time.sleep(0.001)

def piece(sources, data, name, *_):
    if not data.spec.bytes:  # the first of those that share it
        data.write([Stored(name, slices(whole.folder / data.path.name))])
    graph = data.path.with_name(f"{name}.onnx")
    with graph.open("wb") as file:
        for part in slices(whole.folder / graph.name):
            file.write(part.data)
    return whole.piece(name), hash_file(graph)

tracers.processes_for = lambda _: 0
tracers.traced_piece = lambda *_: None
exporter._write_piece = piece
print("begun", flush=True)
sys.exit(main(sys.argv[2:]))
"""
# a build whose plans are a few bytes
BUILD = """
import sys, time
from types import SimpleNamespace
from mimo_edge.engines import build
from mimo_edge.engines.bundle_recipe import for_bundle
from mimo_edge.engines.profiles import Limits
from mimo_edge.engines.target import parse
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.scripts.signals import ending_signals

def made(trt, target, path, *rest):
    time.sleep(0.002)
    log = SimpleNamespace(lines=["built"], warnings=[], unknown=[])
    return SimpleNamespace(plan=path.name.encode() * 50000, log=log, seconds=1.0, inputs={},
                           outputs={}, timing_cache=None)

build.build, build.check_ports = made, lambda *_: None
build.builder_flags = lambda *_: ()
bundle, target = Bundle.open(sys.argv[1]), parse("trt-rtx:8.9")
trt = SimpleNamespace(__version__="1.7.0")
limits = Limits(64, 1)
identity = build.identity_of(bundle, for_bundle(bundle, None), target, trt, limits)
print("begun", flush=True)
with ending_signals():
    build.build_engines(bundle, identity, target, trt, limits, bundle.folder / "engines")
"""


def killed(program: str, words: tuple[object, ...], rng: random.Random, longest: float) -> float:
    """Start a program, and end it after a random time; returns how long it ran at most."""
    running = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=heed_signals,
    )
    assert running.stdout is not None
    running.stdout.readline()
    begin = time.monotonic()
    time.sleep(rng.uniform(0, longest))
    running.send_signal(rng.choice(SIGNALS) if rng.random() < 0.5 else signal.SIGKILL)
    running.communicate(timeout=100)
    return time.monotonic() - begin


def whole_or_nothing(folder: Path) -> bool:
    """Whether there is a bundle; fails if it looks like one and is not."""
    try:
        Bundle.open(folder, verify=False)
    except BundleError:
        return False
    Bundle.open(folder)  # it looks whole: every hash must agree
    return True


def check_folders(output: Path) -> None:
    for folder in (output, partial_of(output), replaced_of(output)):
        whole_or_nothing(folder)


@pytest.fixture
def export_words(golden: Golden, bundle: Path, tmp_path: Path) -> tuple[object, ...]:
    return (
        *(bundle, "export", golden.folder / golden.lm_names[0]),
        *("--audio-tokenizer", golden.folder / "audio_tokenizer"),
        *("--text-tokenizer", golden.folder / "text_tokenizer"),
        *("-o", tmp_path / "out" / "bundle", "--force"),
    )


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_exports(export_words: tuple[object, ...], tmp_path: Path, kills: int) -> None:
    output, rng = tmp_path / "out" / "bundle", random.Random(15)
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, *map(str, export_words)], capture_output=True
    )
    took = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    assert whole_or_nothing(output)
    for number in range(kills):
        words = (*export_words, "--resume") if number % 3 == 2 else export_words
        killed(EXPORT, words, rng, took)
        check_folders(output)
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, *map(str, export_words)], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert whole_or_nothing(output)
    assert [path.name for path in output.parent.iterdir()] == ["bundle"]
    assert {p.name for p in output.iterdir()} == {MANIFEST, *Bundle.open(output).manifest.files}


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_builds(own_bundle: Path, kills: int) -> None:
    rng, engines = random.Random(16), own_bundle / "engines"

    def look() -> int:
        """How many engine folders look whole; all of them must be."""
        found = 0
        for folder in engines.glob("*"):
            try:
                manifest = read(folder)
            except EngineError:
                continue
            for piece, spec in manifest.plans.items():
                assert hash_file(folder / f"{piece}.plan") == spec.file
            found += 1
        return found

    for _ in range(kills):
        killed(BUILD, (own_bundle,), rng, 0.4)
        look()
    done = subprocess.run([sys.executable, "-c", BUILD, str(own_bundle)], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert look() == 1
    assert not [p for p in engines.rglob("*") if p.suffix in (PART, LOCK)]
