"""Audio that cannot be used, and audio that only looks so."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from mimo_edge.runtime.audio.read import MIN_SAMPLES
from mimo_edge.runtime.bundle.manifest import ModelSpec

from tests.cli.conftest import CLIP, Outcome

Run = Callable[..., Outcome]


def write(path: Path, wav: np.ndarray, rate: int = 24000, subtype: str | None = None) -> Path:
    soundfile.write(path, wav, rate, subtype=subtype)
    return path


def noise(seconds: float, rate: int = 24000, channels: int = 1) -> np.ndarray:
    shape = (int(seconds * rate), channels)
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def not_a_number() -> np.ndarray:
    wav = noise(1)
    wav[12000] = np.nan
    return wav


# what is wrong -> (how the file comes about, what the message says, the remedy in it)
BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "text": (lambda p: p.write_text("hello"), "not audio in a known format", "ffmpeg"),
    "empty": (lambda p: p.write_bytes(b""), "empty (0 bytes)", "record"),
    "no samples": (lambda p: write(p, noise(0)), "no samples", "record"),
    "10 ms": (lambda p: write(p, noise(0.01)), f"10.0 ms), the model needs {MIN_SAMPLES}", "add"),
    "nan": (lambda p: write(p, not_a_number(), subtype="FLOAT"), "a NaN", "at 0.500 s; export"),
    "missing": (lambda p: None, "does not exist", "check the path"),
    "folder": (lambda p: p.mkdir(), "is a directory", "name a file in it"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(mimo_edge: Run, bundle: Path, tmp_path: Path, case: str) -> None:
    make, says, remedy = BAD[case]
    make(tmp_path / "sound.wav")
    mimo_edge("run", "asr", bundle, tmp_path / "sound.wav").refused(2, "sound.wav", says, remedy)


def test_wherever_audio_goes_in(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    bad, talk, out = tmp_path / "bad.wav", tmp_path / "talk.json", ("-o", tmp_path / "x.wav")
    bad.write_text("hello")
    talk.write_text(json.dumps({"messages": [{"role": "user", "audio": "bad.wav"}]}))
    for words in (
        ("understand", bundle, bad, "What is it?"),
        ("speech-to-text", bundle, bad),
        ("speech-to-text", bundle, "--conversation", talk),
        ("dialogue", bundle, bad, *out),
        ("dialogue", bundle, CLIP, "--voice", bad, *out),
        ("dialogue", bundle, "--conversation", talk, *out),
        ("tts", bundle, "Hello.", "--instruction", "calm", "--voice", bad, *out),
        ("in-context", bundle, bad, "--instruction", "Repeat.", *out),
        ("in-context", bundle, CLIP, "--instruction", "Say.", "--example", CLIP, bad, "hi", *out),
    ):
        mimo_edge("run", *words).refused(2, "bad.wav", "ffmpeg")


def test_two_hours_are_refused(
    mimo_edge: Run, bundle: Path, tmp_path: Path, spec: ModelSpec
) -> None:
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        for _ in range(120):
            file.write(np.zeros(60 * 8000, np.int16))
    says = f"lasts 7200 s, longer than the limit of {spec.max_audio_seconds} s"
    mimo_edge("run", "asr", bundle, path).refused(2, "long.flac", says, "cut it")


@pytest.mark.parametrize(
    ("case", "wav", "rate"),
    [
        ("silence", np.zeros((12000, 1), np.float32), 24000),
        ("8 channels", noise(0.5, channels=8), 24000),
        ("192 kHz", noise(0.5, 192000), 192000),
        ("just over a segment", noise(61, 8000), 8000),
    ],
)
def test_works(
    mimo_edge: Run, bundle: Path, tmp_path: Path, case: str, wav: np.ndarray, rate: int
) -> None:
    path = write(tmp_path / "sound.wav", wav, rate)
    done = mimo_edge("run", "asr", bundle, path, "--max-new", 3)
    assert done.code == 0, f"{case}: {done.err}"


def test_formats_in(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    """The same clip in every format is heard."""
    wav, rate = soundfile.read(CLIP)
    for suffix in ("wav", "flac", "mp3", "ogg"):
        path = write(tmp_path / f"clip.{suffix}", wav, rate)
        assert mimo_edge("run", "asr", bundle, path, "--max-new", 2).code == 0, suffix


def test_audio_from_stdin(
    mimo_edge: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = mimo_edge("run", "asr", bundle, CLIP, "--max-new", 3)
    with CLIP.open("rb") as stdin:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stdin))
        assert mimo_edge("run", "asr", bundle, "-", "--max-new", 3) == named
    with open("/dev/zero", "rb") as stdin:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stdin))
        mimo_edge("run", "asr", bundle, "-").refused(2, "stdin", "not audio", "ffmpeg")


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_output_that_cannot_be(
    mimo_edge: Run,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stream: tuple[str, ...],
) -> None:
    """Refused before the model has worked for minutes in vain."""
    monkeypatch.setattr(
        "mimo_edge.runtime.generation.scheduler.Scheduler.submit",
        lambda *_: pytest.fail("it has begun to speak"),
    )
    say = ("run", "tts", bundle, "Hello.", *stream)
    (tmp_path / "folder.wav").mkdir()
    mimo_edge(*say).refused(2, "-o FILE")
    mimo_edge(*say, "-o", tmp_path / "x.aiff").refused(2, "x.aiff", "'.aiff'", "use one of .wav")
    mimo_edge(*say, "-o", tmp_path / "x").refused(2, "extension", "use one of .wav")
    mimo_edge(*say, "-o", tmp_path / "none" / "x.wav").refused(2, "no folder '/none'", "create it")
    mimo_edge(*say, "-o", tmp_path / "folder.wav").refused(2, "folder.wav", "another name")
    mimo_edge(*say, "-o", tmp_path / f"{'x' * 300}.wav").refused(2, "too long", "Check the path")
