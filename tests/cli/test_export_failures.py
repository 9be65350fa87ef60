"""Exports that do not end well: nothing that looks whole stays, and finished work can be kept."""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mimo_edge.engines.weight_file import Place, Stored, WeightFile
from mimo_edge.export import exporter, tracers
from mimo_edge.export.pieces import Pieces
from mimo_edge.export.traced import TracedPiece
from mimo_edge.runtime.bundle import unfinished
from mimo_edge.runtime.bundle.folders import MARK
from mimo_edge.runtime.bundle.manifest import MANIFEST

from tests.cli.conftest import Outcome, process
from tests.golden import Golden

Run = Callable[..., Outcome]
TWO = ("mel", "patch_encoder")


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden.folder / golden.lm_names[0], tmp_path / "checkpoint"))


@pytest.fixture
def words(golden: Golden, checkpoint: Path, tmp_path: Path) -> tuple[object, ...]:
    return (
        *("export", checkpoint),
        *("--audio-tokenizer", golden.folder / "audio_tokenizer"),
        *("--text-tokenizer", golden.folder / "text_tokenizer"),
        *("-o", tmp_path / "new" / "bundle"),  # a folder that is not there yet
    )


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are traced where the tests can interfere."""
    monkeypatch.setattr(tracers, "processes_for", lambda _: 0)


@pytest.fixture
def two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pieces that are quick to trace, which is enough to fail in between."""
    real = Pieces.build
    monkeypatch.setattr(Pieces, "names", lambda *_: list(TWO))
    monkeypatch.setattr(Pieces, "build", lambda self, _: real(self, "mel"))
    monkeypatch.setattr(unfinished, "PIECES", TWO)


def fail_writing(monkeypatch: pytest.MonkeyPatch, piece: str, error: BaseException) -> None:
    """Raise in the middle of writing a piece's weights."""
    real = WeightFile.write

    def write(self: WeightFile, tensors: Iterable[Stored]) -> dict[str, Place]:
        if self.path.name.startswith(piece):
            self._file.write(b"half of it")
            raise error
        return real(self, tensors)

    monkeypatch.setattr(WeightFile, "write", write)


def interrupt_tracing(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C when so many pieces have been traced."""
    real, left = tracers.traced_piece, iter(range(after))

    def trace(pieces: Pieces, name: str) -> TracedPiece:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(pieces, name)

    monkeypatch.setattr(tracers, "traced_piece", trace)


def flip(path: Path) -> None:
    """Change the last bit of a file; size and time stay."""
    data, before = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_no_disk_space(mimo_edge: Run, words: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    mimo_edge(*words).refused(4, "/new has 0.0 GB free, the bundle needs", "smaller precision")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            4,
            ("/new/bundle cannot be written (No space left", "Free some disk", "write elsewhere"),
        ),
        (MemoryError(), 4, ("out of memory", "smaller precision")),
        (OSError(errno.EIO, "Input/output error"), 2, ("Input/output error", "Check the path")),
        (KeyboardInterrupt(), 130, ("interrupted",)),
    ],
    ids=["disk fills up", "memory runs out", "disk breaks", "Ctrl-C"],
)
def test_failure_midway(
    mimo_edge: Run,
    words: tuple,
    monkeypatch: pytest.MonkeyPatch,
    two_pieces: None,
    error: BaseException,
    code: int,
    says: tuple[str, ...],
) -> None:
    fail_writing(monkeypatch, "patch_encoder", error)
    done = mimo_edge(*words)
    done.refused(code, "writing mel", "tracing patch_encoder", *says)


def test_a_bundle_outlives_the_failure_of_the_next(
    mimo_edge: Run, words: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_pieces: None
) -> None:
    """--force takes the old bundle away only when the new one is there."""
    old = tmp_path / "new" / "bundle" / MANIFEST
    old.parent.mkdir(parents=True)
    old.write_text("")
    interrupt_tracing(monkeypatch, after=1)
    mimo_edge(*words, "--force").refused(130, "interrupted")
    assert old.exists()


def test_resume(
    mimo_edge: Run, words: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished is kept, and the bundle is that of an export without interruption."""
    monkeypatch.setattr(Pieces, "names", lambda *_: list(TWO))
    monkeypatch.setattr(unfinished, "PIECES", TWO)
    partial, bundle = tmp_path / "new" / "bundle.partial", tmp_path / "new" / "bundle"
    with monkeypatch.context() as patch:
        interrupt_tracing(patch, after=1)
        done = mimo_edge(*words, "--resume")
    assert done.code == 130 and "interrupted" in done.err
    assert (partial / "mel.onnx").is_file() and not bundle.exists()
    mimo_edge("inspect", partial).refused(2, "not a bundle")  # what is left must not look whole

    done = mimo_edge(*words, "--resume")
    assert done.code == 0 and "kept mel" in done.err and "tracing mel" not in done.err
    assert not partial.exists()
    resumed = {p.name: p.read_bytes() for p in bundle.iterdir()}
    assert mimo_edge(*words, "--force").code == 0
    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == resumed
    assert not [name for name in resumed if "finished" in name]


def test_a_finished_export_survives_that_it_cannot_get_its_name(
    mimo_edge: Run, words: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_pieces: None
) -> None:
    """With --resume nothing is traced again; without, nothing stays."""
    partial = tmp_path / "new" / "bundle.partial"
    with monkeypatch.context() as patch:

        def busy(new: Path, place: Path) -> None:
            raise OSError(errno.EBUSY, "Device or resource busy", str(place))

        patch.setattr(unfinished, "take_place", busy)
        mimo_edge(*words).refused(2, "Device or resource busy")
        assert mimo_edge(*words, "--resume").code == 2
        assert (partial / MANIFEST).is_file()
    done = mimo_edge(*words, "--resume")
    assert done.code == 0 and "kept mel" in done.err and "tracing" not in done.err
    assert not partial.exists()
    left = {path.name for path in (tmp_path / "new" / "bundle").iterdir()}
    assert MANIFEST in left and MARK not in left and not [n for n in left if "finished" in n]


STALE = {
    "other precision": lambda checkpoint, mel: ("--dtype", "fp16"),
    "other weights": lambda checkpoint, mel: [flip(p) for p in checkpoint.glob("*.safetensors")],
    "other checkpoint": lambda checkpoint, mel: checkpoint.joinpath("config.json").write_text(
        json.dumps(json.loads((checkpoint / "config.json").read_text()), indent=3)
    ),
    "other exporter": lambda checkpoint, mel: (),
    "damaged piece": lambda checkpoint, mel: flip(mel.with_name("mel.onnx.data")),
    "missing piece": lambda checkpoint, mel: mel.unlink(),
    "damaged marker": lambda checkpoint, mel: mel.with_name("mel.finished.json").write_text("{}"),
    "half a marker": lambda checkpoint, mel: mel.with_name("mel.finished.json").write_text("{"),
}


@pytest.mark.parametrize("case", STALE)
def test_what_is_not_kept(
    mimo_edge: Run,
    words: tuple,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    two_pieces: None,
    case: str,
) -> None:
    """A finished piece counts only if it is whole, and came from the same sources."""
    interrupt_tracing(monkeypatch, after=1)
    assert mimo_edge(*words, "--resume").code == 130
    more = STALE[case](checkpoint, tmp_path / "new" / "bundle.partial" / "mel.onnx")
    if case == "other exporter":
        monkeypatch.setattr(exporter, "_code_digest", lambda: "of another version")
    done = mimo_edge(*words, "--resume", *(more if case == "other precision" else ()))
    assert done.code == 130, done.err
    assert "tracing mel" in done.err and "kept" not in done.err


def test_without_resume_nothing_is_taken_over(
    mimo_edge: Run, words: tuple, monkeypatch: pytest.MonkeyPatch, two_pieces: None, tmp_path: Path
) -> None:
    interrupt_tracing(monkeypatch, after=1)
    assert mimo_edge(*words, "--resume").code == 130
    done = mimo_edge(*words)
    assert done.code == 130 and "tracing mel" in done.err
    assert not (tmp_path / "new" / "bundle.partial").exists()


def test_a_real_interrupt(words: tuple, tmp_path: Path) -> None:
    """SIGINT to the process, in the middle of tracing."""
    running = process(*words)
    deadline = time.monotonic() + 60
    while not (tmp_path / "new" / "bundle.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert out == b"" and b"interrupted" in err and b"Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
