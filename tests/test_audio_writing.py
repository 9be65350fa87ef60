"""Audio out: every format, every refusal, and nothing left behind by a failure."""

import errno
import io
import os
import resource
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.write import open_sink, write_audio
from mimo_edge.runtime.bundle.errors import AudioError, ResourceError

from tests.other_user import as_other_user
from tests.sounds import STEP, speech

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_round_trip(extension: str, tmp_path: Path) -> None:
    wav, path = speech(), tmp_path / f"out{extension.upper()}"
    write_audio(path, wav, 24000)
    assert os.listdir(tmp_path) == [path.name]  # no temporary file
    loaded = load_audio(path)
    assert loaded.shape == wav.shape
    if extension in (".wav", ".flac"):
        np.testing.assert_allclose(loaded, wav, rtol=0, atol=STEP / 2)
    else:
        assert np.corrcoef(loaded, wav)[0, 1] > 0.9


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_sink_in_pieces_is_the_whole(extension: str, tmp_path: Path) -> None:
    wav = speech()
    with open_sink(str(tmp_path / f"pieces{extension}"), 24000) as sink:
        for piece in np.array_split(wav, 7):
            sink.write(piece)
            assert not (tmp_path / f"pieces{extension}").exists()
    write_audio(tmp_path / f"whole{extension}", wav, 24000)
    pieces, whole = (load_audio(tmp_path / f"{name}{extension}") for name in ("pieces", "whole"))
    np.testing.assert_array_equal(pieces, whole)


def test_long_vorbis_does_not_crash(tmp_path: Path) -> None:
    """libsndfile overflows its stack when given this at once."""
    wav = np.zeros(20_000_000, np.float32)
    with open_sink(tmp_path / "long.ogg", 48000) as sink:
        sink.write(wav)
    assert soundfile.info(tmp_path / "long.ogg").frames == wav.shape[0]


def test_clipping(tmp_path: Path) -> None:
    wav = np.repeat(np.array([-5, -1, 1, 5], np.float32), 200)
    write_audio(tmp_path / "loud.wav", wav, 24000)
    samples, _ = soundfile.read(tmp_path / "loud.wav", dtype="int16")
    assert samples[:400].max() <= -32767 and samples[400:].min() == 32767


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, SystemExit])
def test_failure_leaves_nothing_behind(failure: type[BaseException], tmp_path: Path) -> None:
    old = tmp_path / "old.wav"
    old.write_bytes(b"what was there before")
    for path in (old, tmp_path / "new.flac"):
        with pytest.raises(failure), open_sink(path, 24000) as sink:
            sink.write(speech())
            raise failure
    assert os.listdir(tmp_path) == ["old.wav"]
    assert old.read_bytes() == b"what was there before"
    write_audio(old, speech(), 24000)  # and the same place still works
    assert load_audio(old).shape == speech().shape


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_limit_of_file_sizes(extension: str, tmp_path: Path) -> None:
    """Wherever it is reached: in the header, midway, or only as the end is written."""
    write_audio(tmp_path / f"whole{extension}", speech(), 24000)
    size = (tmp_path / f"whole{extension}").stat().st_size
    (tmp_path / f"whole{extension}").unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (10, 6000, size // 2, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with pytest.raises(ResourceError, match=r"may not become so large here \(ulimit -f"):
                write_audio(tmp_path / f"out{extension}", speech(), 24000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "disk of .* is full; free some space"),
        (errno.EROFS, "may not be written; choose another folder"),
        (errno.EIO, "full or gone"),
    ],
)
def test_disk_that_fails_at_the_very_end(
    number: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.wav").write_bytes(b"what was there before")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceError, match=message):
        write_audio(tmp_path / "old.wav", speech(), 24000)
    assert os.listdir(tmp_path) == ["old.wav"]
    assert (tmp_path / "old.wav").read_bytes() == b"what was there before"


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_no_sound_at_all_is_a_file_that_can_be_read(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"empty{extension}"
    with open_sink(path, 24000) as sink:
        sink.write(np.zeros(0, np.float32))
    samples, rate = soundfile.read(path)
    assert rate == 24000 and samples.shape[0] == (extension != ".wav")
    assert np.abs(samples).max(initial=0) < 0.001


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link.wav", tmp_path / "folder" / "target.wav"
    link.symlink_to(target)
    write_audio(link, speech(), 24000)
    assert link.is_symlink() and target.is_file() and os.listdir(target.parent) == ["target.wav"]


def test_longest_name_and_usual_permissions(tmp_path: Path) -> None:
    path, plain = tmp_path / ("n" * 251 + ".wav"), tmp_path / "plain"
    write_audio(path, speech(), 24000)
    plain.touch(0o644)
    assert path.stat().st_mode == plain.stat().st_mode


def test_bad_targets(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "fifo.wav")
    before = sorted(os.listdir(tmp_path))
    for path, rate, message in (
        (tmp_path / "out.m4a", 24000, r"extension '\.m4a' names no known format; use one of \.wav"),
        (tmp_path / "out", 24000, "extension ''"),
        ("/dev/null", 24000, "extension ''"),
        (tmp_path / "missing" / "out.wav", 24000, "there is no folder .* create it first"),
        (tmp_path / "folder.wav", 24000, "not a regular file"),
        (tmp_path / "fifo.wav", 24000, "not a regular file"),
        (tmp_path / "out.mp3", 96000, "MPEG_LAYER_III cannot hold 96000 Hz; use .wav"),
        (tmp_path / "out.opus", 44100, "OPUS cannot hold 44100 Hz"),
        (tmp_path / "out.ogg", 384000, "VORBIS cannot hold 384000 Hz"),
        (tmp_path / "out.wav", 0, "sampling rate"),
        ("-", -1, "sampling rate"),
    ):
        with pytest.raises(AudioError, match=message):
            open_sink(path, rate)
    assert sorted(os.listdir(tmp_path)) == before


def test_read_only_folder() -> None:
    with tempfile.TemporaryDirectory() as name:  # whose parents others may enter
        folder = Path(name)
        folder.chmod(0o555)
        with pytest.raises(AudioError, match="no permission"):
            as_other_user(lambda: open_sink(folder / "out.wav", 24000))


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (np.zeros((2, 1000), np.float32), r"float32 \[N\], not float32 \[2, 1000\]"),
        (np.zeros(1000, np.int16), "not int16"),
        (np.full(1000, np.nan, np.float32), "NaN or inf"),
    ],
)
def test_bad_audio_is_not_written(wav: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=message):
        write_audio(tmp_path / "out.wav", wav, 24000)
    assert os.listdir(tmp_path) == []


def test_writing_outside_the_block(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out.wav", 24000)
    with pytest.raises(AudioError, match="inside the sink's with block"):
        sink.write(speech())
    assert os.listdir(tmp_path) == []


# Standard output


class Stdout(io.BytesIO):
    """Stands for `sys.stdout` and its `.buffer`; records what has been flushed."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self.terminal = terminal
        self.flushed: list[int] = []

    @property
    def buffer(self) -> io.BytesIO:
        return self

    def isatty(self) -> bool:
        return self.terminal

    def flush(self) -> None:
        self.flushed.append(self.tell())


def test_stdout_streams_the_files_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wav, stdout = 2 * speech(), Stdout()
    monkeypatch.setattr(sys, "stdout", stdout)
    pieces = np.array_split(wav, 3)
    with open_sink("-", 24000) as sink:
        for piece in pieces:
            sink.write(piece)
    ends = 44 + 2 * np.cumsum([piece.shape[0] for piece in pieces])
    assert stdout.flushed[:3] == ends.tolist()
    data = stdout.getvalue()
    assert struct.unpack("<I", data[4:8]) == struct.unpack("<I", data[40:44]) == (0xFFFFFFFF,)
    write_audio(tmp_path / "out.wav", wav, 24000)
    np.testing.assert_array_equal(load_audio(data), load_audio(tmp_path / "out.wav"))


def test_stdout_without_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = Stdout()
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(ValueError, match="no model"), open_sink("-", 24000):
        raise ValueError("no model")
    assert stdout.getvalue() == b""  # nothing that looks like audio after a failure
    with open_sink("-", 24000):
        pass
    assert len(stdout.getvalue()) == 44


def test_stdout_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Stdout(terminal=True))
    with pytest.raises(AudioError, match="stdout is a terminal; pipe it"):
        open_sink("-", 24000)
