"""Audio in and out: every format, every refusal, and nothing left behind by a failure."""

import io
import os
import resource
import struct
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from runtime.audio import MIN_SAMPLES, check_audio, load_audio, open_sink, write_audio
from runtime.errors import AudioError, ResourceError
from runtime.resample import resample
from scripts.tolerances import RESAMPLED
from tests.check import close
from tests.golden import Golden

CLIPS = sorted((Path(__file__).parents[1] / "assets" / "clips").glob("*.flac"))
STEP = 1 / 32768  # of 16-bit audio
EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def speech(rate: int = 24000) -> np.ndarray:
    """A spoken clip as wav, float32 [N]: the lossy encoders are made for speech, not for noise."""
    wav, from_rate = soundfile.read(CLIPS[0], dtype="float32")
    return resample(wav, from_rate, rate)


def encoded(wav: np.ndarray, rate: int = 24000, format: str = "WAV", subtype: Any = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wav, rate, format=format, subtype=subtype)
    return file.getvalue()


def flac_without_length(wav: np.ndarray) -> bytes:
    """As an encoder that writes to a pipe leaves it: STREAMINFO's sample count is 0."""
    flac = bytearray(encoded(wav, format="FLAC"))
    flac[21] &= 0xF0  # 36 bits, from the middle of this byte
    flac[22:26] = bytes(4)
    return bytes(flac)


# Reading


def test_golden(golden: Golden, resample_case: str, tmp_path: Path) -> None:
    arrays = golden.npz("mel.npz")
    path = tmp_path / "case.wav"
    rate = int(resample_case.removeprefix("rs"))
    soundfile.write(path, arrays[f"{resample_case}.wav"], rate, subtype="FLOAT")
    close(load_audio(path), arrays[f"{resample_case}.wav24k"], RESAMPLED, resample_case)


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.stem)
def test_clips(path: Path) -> None:
    assert path.stat().st_size < 60_000
    wav = check_audio(load_audio(path))
    assert 2 < wav.shape[0] / 24000 < 7 and 0.1 < np.abs(wav).max() < 1


def test_source_kinds(tmp_path: Path) -> None:
    wav = speech()
    data = encoded(wav, subtype="FLOAT")
    path = tmp_path / "name with spaces, ünïcode.raw"  # the content decides, not the name
    path.write_bytes(data)
    filled = io.BytesIO()
    filled.write(data)  # stands at its end
    with path.open("rb") as opened:
        for source in (path, str(path), data, filled):
            np.testing.assert_array_equal(load_audio(source), wav)
        opened.seek(100)
        stream = io.BufferedReader(io.FileIO(os.dup(opened.fileno())))
        np.testing.assert_array_equal(load_audio(stream), wav)
        assert not stream.closed
        stream.close()


def test_pipes(tmp_path: Path) -> None:
    wav = speech()
    data = encoded(wav, subtype="FLOAT")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for as_stream in (False, True):
        writer = threading.Thread(target=fifo.write_bytes, args=(data,))
        writer.start()
        if as_stream:
            with fifo.open("rb") as stream:
                np.testing.assert_array_equal(load_audio(stream), wav)
        else:
            np.testing.assert_array_equal(load_audio(fifo), wav)
        writer.join()


@pytest.mark.parametrize("channels", [2, 8])
def test_channels_are_averaged_before_resampling(channels: int) -> None:
    wav = np.random.default_rng(0).uniform(-1, 1, (5000, channels)).astype(np.float32)
    loaded = load_audio(encoded(wav, 44100, subtype="FLOAT"))
    np.testing.assert_allclose(loaded, resample(wav.mean(axis=1), 44100, 24000), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [7999, 8000, 11025, 96000, 192000])
def test_rates(rate: int) -> None:
    wav = speech(rate)
    loaded = load_audio(encoded(wav, rate, subtype="FLOAT"))
    assert loaded.dtype == np.float32 and loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, resample(wav, rate, 24000))


def test_silence_and_loudness_pass_unchanged() -> None:
    assert not load_audio(encoded(np.zeros(2000, np.float32))).any()
    loud = np.full(2000, 3, np.float32)
    np.testing.assert_array_equal(load_audio(encoded(loud, subtype="FLOAT")), loud)


def test_flac_without_length() -> None:
    wav = speech()
    np.testing.assert_allclose(load_audio(flac_without_length(wav)), wav, rtol=0, atol=STEP)


def test_shortest_and_longest() -> None:
    assert load_audio(encoded(np.zeros(MIN_SAMPLES, np.float32))).shape == (MIN_SAMPLES,)
    second = np.zeros(24000, np.float32)
    assert load_audio(encoded(second), max_seconds=1).shape == (24000,)
    longer = np.zeros(24001, np.float32)
    for data in (encoded(longer), flac_without_length(longer)):
        with pytest.raises(AudioError, match=r"limit of 1 s; cut it .* or raise max_seconds"):
            load_audio(data, max_seconds=1)
    with pytest.raises(AudioError, match="lasts 1801 s, longer than the limit of 1800 s"):
        load_audio(encoded(np.zeros(1801 * 100, np.float32), 100))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"empty \(0 bytes\); record or export"),
        (b"Not audio at all.\n" * 50, "not audio in a known format .*ffmpeg"),
        (bytes(5000), "not audio in a known format"),
        (encoded(speech())[:20], "not audio in a known format"),
        (encoded(np.zeros(0, np.float32)), "holds no samples"),
        (encoded(np.zeros(MIN_SAMPLES - 1, np.float32)), r"too short: 480 samples .* needs 481"),
        (encoded(np.zeros(900, np.float32), 48000), "too short: 450 samples"),
        (encoded(speech(), format="FLAC")[:20_000], "damaged or cut short after"),
        (
            encoded(np.array([0.0] * 24000 + [np.nan] + [0.0] * 500, np.float32), subtype="FLOAT"),
            "NaN or an infinite sample at 1.000 s",
        ),
        (encoded(np.full(1000, -np.inf, np.float32), subtype="FLOAT"), "at 0.000 s"),
        (encoded(np.full(1000, 1e300), subtype="DOUBLE"), "infinite"),
        (encoded(np.zeros(1000, np.float32), 999_999_937), "ratio"),
    ],
)
def test_bad_content(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(data)
    with pytest.raises(AudioError, match=message) as raised:
        load_audio(path)
    assert str(path) in str(raised.value)
    with pytest.raises(AudioError, match=message):
        load_audio(data)


def test_bad_paths(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        (tmp_path / "missing.wav", "does not exist; check the path"),
        (tmp_path, "is a directory; name a file in it"),
        (tmp_path / "loop", "cannot be opened"),
        (tmp_path / "nul\0.wav", "cannot be opened"),
    ):
        with pytest.raises(AudioError, match=message) as raised:
            load_audio(path)
        assert repr(str(path)) in str(raised.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_path(tmp_path: Path) -> None:
    path = tmp_path / "secret.wav"
    path.write_bytes(encoded(speech()))
    path.chmod(0)
    with pytest.raises(AudioError, match="may not be read"):
        load_audio(path)


@pytest.mark.parametrize("source", [io.StringIO("text"), None, 3, [0.0] * 1000])
def test_bad_source(source: Any) -> None:
    with pytest.raises(AudioError, match="not an open binary stream"):
        load_audio(source)


def test_memory_is_the_result_and_some_blocks(tmp_path: Path) -> None:
    path, second = tmp_path / "long.flac", np.zeros((48000, 2), np.int16)
    with soundfile.SoundFile(path, "w", 48000, 2, subtype="PCM_16") as file:
        for _ in range(300):
            file.write(second)
    tracemalloc.start()
    wav = load_audio(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert wav.shape == (300 * 24000,)
    assert peak - wav.nbytes < 20 << 20  # decoded at once it would be 115 MB, and 58 MB mono


# Arrays


def test_check_audio() -> None:
    wav = speech()
    assert check_audio(wav) is wav
    for other in (wav.astype(np.float64), wav[::-1], wav.tolist()):
        checked = check_audio(other)
        assert checked.dtype == np.float32 and checked.flags.c_contiguous
    assert not check_audio(np.zeros(MIN_SAMPLES, np.float32)).any()


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (np.zeros(1000, np.int16), "int16, .* divide integer samples"),
        (np.zeros((2, 1000), np.float32), r"shape \[2, 1000\], not \[N\]; average"),
        (np.float32(0), r"shape \[\]"),
        (np.zeros(0, np.float32), "holds no samples"),
        (np.zeros(480, np.float32), r"too short: 480 samples at 24000 Hz \(20.0 ms\)"),
        (np.full(1000, np.nan, np.float32), "NaN or an infinite sample at 0.000 s"),
        (np.full(1000, 1e300), "infinite"),
        (np.broadcast_to(np.float32(0), 1800 * 24000 + 1), "lasts 1801 s, longer than the limit"),
    ],
)
def test_bad_array(wav: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        check_audio(wav)


# Writing


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
def test_full_disk(extension: str, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))  # a larger file cannot be written
    try:
        with pytest.raises(ResourceError, match=r"disk of .* full"):
            write_audio(tmp_path / f"out{extension}", speech(), 24000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(AudioError, match="no permission"):
        open_sink(tmp_path / "out.wav", 24000)


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
