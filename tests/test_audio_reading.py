"""Audio in: every format and kind of source, and every refusal."""

import io
import os
import tempfile
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from mimo_edge.parity.tolerances import RESAMPLED
from mimo_edge.runtime.audio.read import MIN_SAMPLES, check_audio, load_audio
from mimo_edge.runtime.audio.resample import resample
from mimo_edge.runtime.bundle.errors import AudioError

from tests.check import close
from tests.golden import Golden
from tests.other_user import as_other_user
from tests.sounds import CLIPS, STEP, encoded, flac_without_length, speech


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


@pytest.mark.parametrize("channels", [2, 9])
def test_channels_are_averaged_before_resampling(channels: int) -> None:
    wav = np.random.default_rng(0).uniform(-1, 1, (5000, channels)).astype(np.float32)
    loaded = load_audio(encoded(wav, 44100, subtype="FLOAT"))
    np.testing.assert_allclose(loaded, resample(wav.mean(axis=1), 44100, 24000), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [7999, 8000, 11025, 96000, 192000])
def test_rates(rate: int) -> None:
    wav = speech(rate)
    loaded = load_audio(encoded(wav, rate, subtype="FLOAT"))
    assert loaded.dtype == np.float32 and loaded.flags.c_contiguous
    # Other pieces, other matrix products: their last bits depend on the processor.
    np.testing.assert_allclose(loaded, resample(wav, rate, 24000), rtol=0, atol=1e-6)


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
        (encoded(speech(), format="FLAC")[:20_000], "is cut short: 0.68 of 2.75 s"),
        (
            encoded(np.array([0.0] * 24000 + [np.nan] + [0.0] * 500, np.float32), subtype="FLOAT"),
            "NaN or an infinite sample at 1.000 s",
        ),
        (encoded(np.full(1000, -np.inf, np.float32), subtype="FLOAT"), "at 0.000 s"),
        (encoded(np.full(1000, 1e300), subtype="DOUBLE"), "infinite"),
        (encoded(np.zeros(1000, np.float32), 999_999_937), "sampling rate of 999999937 Hz"),
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


def test_unreadable_path() -> None:
    with tempfile.TemporaryDirectory() as name:  # whose parents others may enter
        path = Path(name) / "secret.wav"
        path.write_bytes(encoded(speech()))
        path.parent.chmod(0o755)
        path.chmod(0)
        with pytest.raises(AudioError, match="may not be read"):
            as_other_user(lambda: load_audio(path))


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
