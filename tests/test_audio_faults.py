"""Sound files that are not what they say, in every container: heard whole, or refused with why."""

import io
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from mimo_edge.runtime.audio import ogg
from mimo_edge.runtime.audio.mpeg import frame
from mimo_edge.runtime.audio.read import audio_from_array, load_audio
from mimo_edge.runtime.audio.resample import resample
from mimo_edge.runtime.bundle.errors import AudioError

from tests.sounds import STEP, encoded, speech

FAULTS = Path(__file__).parent / "faults"
# (format, subtype) of every container that is read
CONTAINERS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "IMA_ADPCM"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("NIST", "PCM_16"),
    ("NIST", "ULAW"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]
SIZED = [pair for pair in CONTAINERS if pair[0] not in ("OGG", "MP3", "FLAC")]
ID3 = b"ID3\4\0\0\0\0\1\0" + bytes(128)


@pytest.fixture(scope="module")
def sounds() -> dict[tuple[str, str], bytes]:
    return {pair: encoded(speech(), 24000, *pair) for pair in CONTAINERS}


def test_the_fault_files() -> None:
    """Those that were tried on the product, with what is right."""
    whole = load_audio(FAULTS / "data0.wav")
    assert whole.shape == (35321,) and np.abs(whole).max() > 0.1
    np.testing.assert_allclose(load_audio(FAULTS / "flac_trail.flac"), whole, atol=STEP)
    for name, message in (
        ("half.wav", r"is cut short: 0\.73 of 1\.47 s are there"),
        ("mp3_half.mp3", r"is cut short: 0\.74 of 1\.54 s are there"),
        ("ogg_chain2.ogg", "holds more than one stream"),
        ("f32_x32768.wav", "integers written as float; divide the samples .*32768"),
    ):
        with pytest.raises(AudioError, match=message):
            load_audio(FAULTS / name)


@pytest.mark.parametrize("pair", CONTAINERS, ids="-".join)
def test_cut_anywhere(pair: tuple[str, str], sounds: dict[tuple[str, str], bytes]) -> None:
    """Never a part for the whole. What is cut off may be padding: then all is heard."""
    data = sounds[pair]
    whole = load_audio(data)
    places = [1, 2, 7, 63, *np.linspace(100, len(data) - 13, 12).astype(int).tolist()]
    for less in places:
        try:
            heard = load_audio(data[:-less])
        except AudioError as error:
            assert "cut short" in str(error), f"{less} bytes less: {error}"
        else:
            assert less < 64, f"{less} bytes less are not noticed"
            np.testing.assert_array_equal(heard, whole)


@pytest.mark.parametrize("pair", SIZED, ids="-".join)
def test_cut_says_how_much_is_there(
    pair: tuple[str, str], sounds: dict[tuple[str, str], bytes]
) -> None:
    with pytest.raises(AudioError, match=r"is cut short: 1\.[34]\d of 2\.[79]\d s are there"):
        load_audio(sounds[pair][: len(sounds[pair]) // 2])


@pytest.mark.parametrize("pair", CONTAINERS, ids="-".join)
def test_rubbish_behind_the_sound(
    pair: tuple[str, str], sounds: dict[tuple[str, str], bytes]
) -> None:
    data = sounds[pair]
    np.testing.assert_array_equal(load_audio(data + b"rubbish!" * 20), load_audio(data))
    np.testing.assert_array_equal(load_audio(ID3 + data), load_audio(data))


@pytest.mark.parametrize("pair", CONTAINERS[:-1], ids="-".join)
def test_two_files_joined(pair: tuple[str, str], sounds: dict[tuple[str, str], bytes]) -> None:
    # libsndfile pads ALAC so that the second begins later than the first says
    with pytest.raises(AudioError, match=r"more than one stream|announces less sound"):
        load_audio(sounds[pair] + sounds[pair])


@pytest.mark.parametrize("between", [b"", ID3, b"TAG" + bytes(125)])
def test_joined_mp3_are_heard_whole(
    between: bytes, sounds: dict[tuple[str, str], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    data = sounds["MP3", "MPEG_LAYER_III"]
    heard = load_audio(data + between + data)
    assert 2 * len(speech()) <= len(heard) < 2 * len(speech()) + 8000
    second = heard[len(heard) // 2 :]
    assert np.abs(second).max() > 0.1
    assert capfd.readouterr().err == ""  # libmpg123 warns by itself


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_lengths_that_a_pipe_does_not_know(length: int) -> None:
    wav = speech()
    for format, endian, order, at in (
        ("WAV", "LITTLE", "<I", 40),
        ("WAV", "BIG", ">I", 40),
        ("AIFF", "BIG", ">I", 42),
        ("AU", "BIG", ">I", 8),
    ):
        data = wrapped(wav, format, endian)
        marker = {"WAV": b"data", "AIFF": b"SSND"}.get(format)
        at = data.index(marker) + 4 if marker else at
        changed = bytearray(data)
        changed[at : at + 4] = struct.pack(order, length)
        if marker:
            changed[4:8] = struct.pack(order, length)
        heard = load_audio(bytes(changed))
        np.testing.assert_allclose(heard, wav, rtol=0, atol=STEP, err_msg=f"{format} {endian}")


def wrapped(wav: np.ndarray, format: str, endian: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wav, 24000, format=format, endian=endian, subtype="PCM_16")
    return file.getvalue()


@pytest.mark.parametrize("length", [bytes(8), b"\xff" * 8])
def test_long_lengths_that_a_pipe_does_not_know(
    length: bytes, sounds: dict[tuple[str, str], bytes]
) -> None:
    for format, after in (("W64", 16), ("CAF", 4)):
        data = bytearray(sounds[format, "PCM_16"])
        at = data.index(b"data") + after
        data[at : at + 8] = length
        heard = load_audio(bytes(data))
        np.testing.assert_allclose(heard, speech(), rtol=0, atol=STEP, err_msg=format)
    data = bytearray(sounds["RF64", "PCM_16"])
    data[20:36] = 2 * length  # in the ds64 chunk: of the form and of the sound
    np.testing.assert_allclose(load_audio(bytes(data)), speech(), rtol=0, atol=STEP)


def test_frames_and_pages_that_are_missing_at_the_end(
    sounds: dict[tuple[str, str], bytes],
) -> None:
    """Cut between two, where nothing is broken: only the count or the mark of the end tells."""
    for codec in ("VORBIS", "OPUS"):
        data = sounds["OGG", codec]
        with pytest.raises(AudioError, match=r"cut short: only \d\.\d\d s are there"):
            load_audio(data[: data.rindex(b"OggS")])
    data = sounds["MP3", "MPEG_LAYER_III"]
    second = frame(data[:4])
    assert second is not None
    bare = data[second.length :]  # without the frame that announces the others
    assert len(load_audio(bare)) >= len(speech())
    with pytest.raises(AudioError, match=r"cut short: only \d\.\d\d s are there"):
        load_audio(bare[:-20])


def test_less_announced_than_there() -> None:
    """Half of the sound would not be heard."""
    data = bytearray(encoded(speech()))
    data[40:44] = struct.pack("<I", 2 * 20_000)
    with pytest.raises(AudioError, match="announces less sound than it holds"):
        load_audio(bytes(data))
    data[4:8] = struct.pack("<I", 36 + 2 * 20_000)
    with pytest.raises(AudioError, match="announces less sound than it holds"):
        load_audio(bytes(data))


@pytest.mark.parametrize("frames", [20_000, 90_000])
def test_flac_that_announces_another_length(frames: int) -> None:
    data = bytearray(encoded(speech(), format="FLAC"))
    data[22:26] = struct.pack(">I", frames)
    message = "less sound than it holds" if frames < len(speech()) else "cut short: 2.7. of 3.75 s"
    with pytest.raises(AudioError, match=message):
        load_audio(bytes(data))


def test_damaged_ogg_and_mp3(sounds: dict[tuple[str, str], bytes]) -> None:
    for pair in (("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")):
        data = sounds[pair]
        middle = len(data) // 2
        with pytest.raises(AudioError, match="damaged"):
            load_audio(data[:middle] + bytes(1500) + data[middle + 1500 :])


@pytest.mark.parametrize("rate", [1, 3, 999, 768_001, 10**9])
def test_rates_that_no_recording_has(rate: int) -> None:
    """Forty samples at 3 Hz would be 13 seconds of what is no sound."""
    data = bytearray(encoded(speech()[:4000]))
    data[24:32] = struct.pack("<II", rate, 2 * rate)
    said = f"bytes has a sampling rate of {rate} Hz, which no recording of speech has"
    with pytest.raises(AudioError, match=said):
        load_audio(bytes(data), max_seconds=1e6)
    with pytest.raises(AudioError, match=said.removeprefix("bytes ")):
        audio_from_array(speech(), rate, max_seconds=1e6)


# Channels


def test_a_voice_in_the_centre_keeps_its_level() -> None:
    voice = speech()
    for format, subtype, centre in (("WAV", "FLOAT", 2), ("FLAC", "PCM_16", 2)):
        surround = np.zeros((len(voice), 6), np.float32)
        surround[:, centre] = voice
        heard = load_audio(encoded(surround, 24000, format, subtype))
        np.testing.assert_allclose(heard, voice, rtol=0, atol=STEP)
    surround = np.zeros((len(voice), 6), np.float32)
    surround[:, 1] = voice  # Vorbis has the centre second
    heard = load_audio(encoded(surround, 24000, "OGG", "VORBIS"))
    assert abs(np.std(heard) / np.std(voice) - 1) < 0.05
    pair = np.stack([voice, np.zeros_like(voice)], axis=1)
    np.testing.assert_allclose(load_audio(encoded(pair, subtype="FLOAT")), voice / 2, atol=1e-7)


def test_the_mask_names_the_speakers() -> None:
    """Two front channels and a rear one, which without the mask would be the centre."""
    wav = np.random.default_rng(0).uniform(-0.3, 0.3, (2000, 3)).astype(np.float32)
    data = bytearray(encoded(wav, 24000, "WAVEX", "FLOAT"))
    at = data.index(b"fmt ") + 8 + 20
    data[at : at + 4] = struct.pack("<I", 0x1 | 0x2 | 0x100)  # front left, front right, back centre
    expected = wav @ np.array([0.5, 0.5, 0.25 * np.sqrt(2)], np.float32)
    np.testing.assert_allclose(load_audio(bytes(data)), expected, rtol=0, atol=1e-6)


# Streams without an end


class Endless:
    """A pipe that gives a beginning and then zeros for ever."""

    def __init__(self, beginning: bytes) -> None:
        self.rest, self.given = beginning, 0

    def seekable(self) -> bool:
        return False

    def read(self, count: int = -1) -> bytes:
        assert count >= 0, "read without a bound"
        piece, self.rest = self.rest[:count], self.rest[count:]
        self.given += count
        return piece + bytes(count - len(piece))


def test_endless_streams_are_bounded(sounds: dict[tuple[str, str], bytes]) -> None:
    zeros = Endless(b"")
    with pytest.raises(AudioError, match="not audio in a known format"):
        load_audio(zeros)  # type: ignore[arg-type]
    assert zeros.given <= 1 << 20
    for pair in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16"), ("OGG", "OPUS")):
        data = sounds[pair]
        stream = Endless(data[: len(data) // 2])
        with pytest.raises(AudioError, match="longer than the limit of 5 s"):
            load_audio(stream, max_seconds=5)  # type: ignore[arg-type]
        assert stream.given < 20 << 20
    with pytest.raises(AudioError, match="not audio in a known format"):
        load_audio("/dev/zero")


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    data = encoded(speech(), subtype="FLOAT")
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)

        def feed() -> None:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(data)

        writer = threading.Thread(target=feed)
        writer.start()
        np.testing.assert_array_equal(load_audio("-"), speech())
        writer.join()
        with pytest.raises(AudioError, match=r"on stdin is empty .* serves one input only"):
            load_audio("-")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(AudioError, match="stdin is closed; name a sound file"):
        load_audio("-")


# Arrays of any rate


def test_arrays_of_any_rate() -> None:
    wav = speech(16000)
    np.testing.assert_array_equal(audio_from_array(wav, 16000), resample(wav, 16000, 24000))
    np.testing.assert_array_equal(audio_from_array(wav, 24000), wav)
    assert audio_from_array(np.zeros(321), 16000).shape == (482,)  # long enough at 24 kHz
    for bad, rate, message in (
        (wav, 0, "the audio array: a sampling rate"),
        (wav, 16000.5, "sampling rate"),
        (np.zeros((2, 1000)), 16000, r"not \[N\]"),
        (np.zeros(900), 48000, "too short: 450 samples"),
        (np.zeros(16001 * 2), 16000, "longer than the limit of 2 s"),
        (wav * 32768, 16000, "integers written as float"),
        (np.full(1000, np.nan), 16000, "NaN"),
    ):
        with pytest.raises(AudioError, match=message):
            audio_from_array(bad, rate, max_seconds=2 if len(bad) == 32002 else 1800)  # type: ignore[arg-type]


def test_what_goes_wrong_in_a_stream_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    """It comes up while libsndfile is calling, which no exception can pass through."""

    class Failing(io.BytesIO):
        def __init__(self, failure: BaseException) -> None:
            super().__init__(encoded(np.zeros(1_000_000, np.float32)))
            self.failure, self.left = failure, 30

        def read(self, count: int | None = -1) -> bytes:
            self.left -= count != 0
            if self.left == 0:
                raise self.failure
            return super().read(count)

    with pytest.raises(KeyboardInterrupt):
        load_audio(Failing(KeyboardInterrupt()))
    with pytest.raises(AudioError, match="Input/output error"):
        load_audio(Failing(OSError(5, "Input/output error")))
    assert capfd.readouterr().err == ""


# Lengths that nobody announces, or that are not true


@pytest.mark.parametrize("rate", [24000, 44100])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_mp3_without_a_count_of_its_frames(rate: int, mode: str) -> None:
    """libsndfile guesses a length from the first frame, and stops there: of 24,000 samples, loud
    ones first, 6,048 came back."""
    noise = np.random.default_rng(0).normal(0, 0.2, rate // 2)
    wav = np.concatenate((noise, np.zeros(rate // 2), noise))
    for sound in (wav, wav[::-1]):
        file = io.BytesIO()
        soundfile.write(file, sound, rate, format="MP3", bitrate_mode=mode, compression_level=0.3)
        data = file.getvalue()
        first = frame(data[:4])
        assert first is not None
        whole, bare = load_audio(data, rate=rate), data[first.length :]
        assert len(whole) == len(wav)
        # without the count nobody knows how much of it is the encoder's padding, at both ends
        heard = load_audio(bare, rate=rate)
        frames, padding = divmod(len(heard), first.samples)
        assert padding == 0 and 0 < frames * first.samples - len(wav) < 3 * first.samples
        np.testing.assert_allclose(heard[1105 : 1105 + len(wav)], whole, rtol=0, atol=1e-6)
        with pytest.raises(AudioError, match="longer than the limit of 1 s"):
            load_audio(bare, rate=rate, max_seconds=1)
        load_audio(bare, rate=rate, max_seconds=1.6)  # the guess would be more


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("position", [10_000, 0, -1])
def test_ogg_whose_last_page_goes_back_in_time(
    codec: str, position: int, sounds: dict[tuple[str, str], bytes]
) -> None:
    """The decoder believes it, and leaves the rest out."""
    data = bytearray(sounds["OGG", codec])
    last = data.rindex(b"OggS")
    page = data[last:]
    page[6:14] = struct.pack("<q", position)
    page[22:26] = bytes(4)
    page[22:26] = struct.pack("<I", ogg._checksum(bytes(page)))
    with pytest.raises(AudioError, match=r"is damaged \(Ogg page \d goes back in time\)"):
        load_audio(bytes(data[:last] + page))
