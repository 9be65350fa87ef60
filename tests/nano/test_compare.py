"""Distances between readings that do not depend on any model."""

import numpy as np
import pytest
import torch
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from mimo_edge.scripts.nano.compare import compare, pitch, warp
from mimo_edge.scripts.nano.sizes import NANO

CONFIG = AudioTokenizerConfig.from_dict(NANO.audio_tokenizer)


def tone(start: float, end: float, seconds: float = 1.0) -> torch.Tensor:
    """A buzz that glides from one pitch to another."""
    hertz = np.linspace(start, end, round(seconds * 24000))
    phase = 2 * np.pi * np.cumsum(hertz) / 24000
    return torch.from_numpy(sum(np.sin(k * phase) / k for k in range(1, 9)) * 0.1).float()


@pytest.mark.parametrize("hertz", [80, 120, 210, 330])
def test_pitch_of_a_tone(hertz: float) -> None:
    found = pitch(tone(hertz, hertz).numpy(), CONFIG)[3:-4]
    np.testing.assert_allclose(found, hertz, rtol=0.04)


def test_silence_has_no_pitch() -> None:
    assert np.isnan(pitch(np.zeros(24000, np.float32), CONFIG)).all()


def test_the_warp_follows_what_is_slower() -> None:
    a = np.arange(6.0)[:, None]
    first, second = warp(a, np.repeat(a, 2, axis=0))
    np.testing.assert_array_equal(a[first], np.repeat(a, 2, axis=0)[second])


def test_a_slower_reading_is_the_same_and_another_melody_is_not() -> None:
    same = compare(tone(100, 200), tone(100, 200, 1.3), CONFIG)
    other = compare(tone(200, 100), tone(100, 200), CONFIG)
    assert same[0] < 0.5 * other[0]
    assert same[1] > 0.9 > other[1]
