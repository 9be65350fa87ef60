"""Pieces traced by other processes are what they are when traced here; none is left running."""

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from mimo_edge.export import tracers
from mimo_edge.export.piece import Piece
from mimo_edge.export.pieces import Pieces
from mimo_edge.export.sources import Sources
from mimo_edge.export.traced import traced_piece
from mimo_edge.export.tracers import processes_for, traced_pieces
from mimo_edge.mimo_ref.errors import CheckpointError
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, ResourceError
from mimo_edge.runtime.bundle.manifest import PIECES

from tests.bundles import NANO

QUICK = ("mel", "patch_encoder")
# begins two pieces, and is told to wait for them
EXPORT = """
import pickle, sys
from mimo_edge.export import tracers
tracers.processes_for = lambda _: 2
pieces, names = pickle.load(sys.stdin.buffer), ["backbone", "tokenizer_decoder"]
with tracers.traced_pieces(pieces, names, lambda name: print(name, flush=True)) as traced:
    next(traced)
"""


@dataclass(frozen=True)
class Damaged(Pieces):
    """Pieces of a model that cannot be built."""

    def build(self, name: str) -> Piece:
        raise CheckpointError(f"{name} cannot be built")


@pytest.fixture(scope="module")
def pieces() -> Pieces:
    lm = NANO / "language_model"
    return Sources.open(lm, NANO / "audio_tokenizer", lm).pieces(torch.float32)


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracers, "processes_for", lambda _: 1)


def test_two_processes_trace_what_one_traces(
    pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, and each is said to be begun."""
    monkeypatch.setattr(tracers, "processes_for", lambda _: 2)
    begun: list[str] = []
    with traced_pieces(pieces, QUICK, begun.append) as traced:
        there = dict(traced)
    assert sorted(begun) == sorted(there) == sorted(QUICK)
    for name in QUICK:
        here = traced_piece(pieces, name)
        assert there[name].graph == here.graph
        assert pickle.dumps(there[name]) == pickle.dumps(pickle.loads(pickle.dumps(here)))


def test_what_a_tracer_raises_is_raised_here(pieces: Pieces, one: None) -> None:
    damaged = Damaged(**vars(pieces))
    with (
        pytest.raises(CheckpointError, match=r"^mel cannot be built") as error,
        traced_pieces(damaged, ["mel"], lambda _: None) as traced,
    ):
        next(traced)
    assert "in build" in error.value.__notes__[0], "where it came from"


@pytest.mark.parametrize(
    ("program", "error", "says"),
    [
        ("import os; os.kill(os.getpid(), 9)", ResourceError, r"traced mel was killed.*--resume"),
        ("raise SystemExit(3)", EnvironmentProblem, "traced mel ended with exit code 3"),
    ],
)
def test_a_tracer_that_ends(
    pieces: Pieces,
    one: None,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    error: type[Exception],
    says: str,
) -> None:
    monkeypatch.setattr(tracers, "PROGRAM", program)
    with (
        pytest.raises(error, match=says),
        traced_pieces(pieces, ["mel"], lambda _: None) as traced,
    ):
        next(traced)


def test_a_single_core_traces_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process would only import torch once more; so would one for a single piece."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert processes_for(len(PIECES)) == 2 and processes_for(1) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert processes_for(len(PIECES)) == 0
    assert set(tracers.ORDER) == set(PIECES)


def test_no_tracer_outlives_a_kill(pieces: Pieces) -> None:
    """The export's stderr is its tracers' too, and ends with the last of them. (Ctrl-C:
    tests/cli/test_export_failures.py.)"""
    running = subprocess.Popen(
        [sys.executable, "-c", EXPORT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdin is not None and running.stdout is not None
    pickle.dump(pieces, running.stdin)
    running.stdin.flush()
    assert running.stdout.readline() in (b"backbone\n", b"tokenizer_decoder\n")
    running.kill()
    running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL
