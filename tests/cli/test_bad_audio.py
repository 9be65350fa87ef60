"""Audio that cannot be used, and audio that only looks so."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.cli.conftest import CLIP, Outcome

Run = Callable[..., Outcome]


def write(path: Path, wav: np.ndarray, rate: int = 24000, subtype: str | None = None) -> Path:
    soundfile.write(path, wav, rate, subtype=subtype)
    return path


def noise(seconds: float, rate: int = 24000, channels: int = 1) -> np.ndarray:
    shape = (int(seconds * rate), channels)
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


@pytest.mark.parametrize(
    "case", ["text", "empty", "no samples", "10 ms", "nan", "missing", "folder"]
)
def test_refused(mimo_edge: Run, bundle: Path, tmp_path: Path, case: str) -> None:
    path = tmp_path / "sound.wav"
    nan = noise(1)
    nan[500] = np.nan
    make: dict[str, tuple[Callable[[], object], str]] = {
        "text": (lambda: path.write_text("hello"), "not"),
        "empty": (lambda: path.write_bytes(b""), "audio"),
        "no samples": (lambda: write(path, noise(0)), "no samples"),
        "10 ms": (lambda: write(path, noise(0.01)), "481"),
        "nan": (lambda: write(path, nan, subtype="FLOAT"), "NaN"),
        "missing": (lambda: None, "does not exist"),
        "folder": (lambda: path.mkdir(), "folder"),
    }
    make[case][0]()
    done = mimo_edge("run", "asr", bundle, path)
    done.refused(2, str(path))
    assert make[case][1].lower() in done.err.lower(), done.err


def test_two_hours_are_refused(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        for _ in range(120):
            file.write(np.zeros(60 * 8000, np.int16))
    mimo_edge("run", "asr", bundle, path).refused(2, str(path), "1800")


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


def test_output_that_cannot_be(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    say = ("run", "tts", bundle, "Hello.", "--max-new", 2)
    mimo_edge(*say).refused(2, "-o")
    mimo_edge(*say, "-o", tmp_path / "x.aiff").refused(2, "x.aiff", ".wav")
    mimo_edge(*say, "-o", tmp_path / "none" / "x.wav").refused(2, "none")
    assert not list(tmp_path.iterdir())


def test_formats_in(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    """The same clip in every format is heard."""
    wav, rate = soundfile.read(CLIP)
    for suffix in ("wav", "flac", "mp3", "ogg"):
        path = write(tmp_path / f"clip.{suffix}", wav, rate)
        assert mimo_edge("run", "asr", bundle, path, "--max-new", 2).code == 0, suffix
