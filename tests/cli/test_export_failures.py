"""Exports that do not end well: nothing that looks whole stays, and finished work can be kept."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from export import exporter
from export.exporter import Sources
from tests.cli.conftest import Outcome
from tests.golden import Golden

Run = Callable[..., Outcome]
FEW = ("mel", "patch_encoder")  # quick to trace; enough to fail between


@pytest.fixture
def words(golden: Golden, tmp_path: Path) -> tuple[object, ...]:
    folder = golden.folder
    return (
        "export",
        folder / golden.lm_names[0],
        *("--audio-tokenizer", folder / "audio_tokenizer"),
        *("--text-tokenizer", folder / "text_tokenizer"),
        *("-o", tmp_path / "bundle"),
    )


@pytest.fixture
def few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some pieces, where the test ends before the bundle would."""
    real = Sources.piece_builders

    def some(self: Sources, dtype: object) -> dict:
        return {name: build for name, build in real(self, dtype).items() if name in FEW}

    monkeypatch.setattr(Sources, "piece_builders", some)
    monkeypatch.setattr(exporter, "PIECES", FEW)


def fail_at(monkeypatch: pytest.MonkeyPatch, piece: str, error: BaseException) -> None:
    """Raise in the middle of writing a piece's weights."""
    real = exporter.WeightWriter.write

    def write(self, regions, path, progress):  # type: ignore[no-untyped-def]
        if self.piece.name == piece:
            path.write_bytes(b"half of it")
            raise error
        return real(self, regions, path, progress)

    monkeypatch.setattr(exporter.WeightWriter, "write", write)


def test_no_disk_space(
    mimo_edge: Run, words: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    mimo_edge(*words).refused(4, "GB free", "--dtype")
    assert not list(tmp_path.iterdir())


def test_disk_fills_up(
    mimo_edge: Run,
    words: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    few_pieces: None,
) -> None:
    fail_at(monkeypatch, "patch_encoder", OSError(errno.ENOSPC, "No space left on device"))
    mimo_edge(*words).refused(4, "full", "Free")
    assert not list(tmp_path.iterdir())


def test_interrupted_without_resume(
    mimo_edge: Run,
    words: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    few_pieces: None,
) -> None:
    fail_at(monkeypatch, "patch_encoder", KeyboardInterrupt())
    mimo_edge(*words).refused(130, "interrupted")
    assert not list(tmp_path.iterdir())


def test_resume(
    mimo_edge: Run,
    words: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    few_pieces: None,
) -> None:
    """What was finished is kept, byte for byte, unless it came from something else."""
    partial, bundle = tmp_path / "bundle.partial", tmp_path / "bundle"
    with monkeypatch.context() as patch:
        fail_at(patch, "patch_encoder", KeyboardInterrupt())
        mimo_edge(*words, "--resume").refused(130, "interrupted")
    assert partial.is_dir() and not bundle.exists()
    assert mimo_edge("inspect", partial).code == 2, "what is left must not look whole"

    done = mimo_edge(*words, "--resume", "--dtype", "fp16")
    assert done.code == 0 and "kept mel" not in done.err, "another precision is another export"
    shutil.rmtree(bundle)
    with monkeypatch.context() as patch:
        fail_at(patch, "patch_encoder", KeyboardInterrupt())
        mimo_edge(*words, "--resume")
    done = mimo_edge(*words, "--resume")
    assert done.code == 0 and "kept mel" in done.err and not partial.exists()

    resumed = {p.name: p.read_bytes() for p in bundle.iterdir()}
    assert mimo_edge(*words, "--force").code == 0
    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == resumed
    assert not [name for name in resumed if "finished" in name]


def test_a_real_interrupt(words: tuple, tmp_path: Path) -> None:
    """SIGINT to the process, in the middle of tracing."""
    command = [sys.executable, "-m", "scripts.cli", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "bundle.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())
