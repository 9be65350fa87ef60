"""`audio.resample` against upstream's results and against the dense form of its kernel."""

import math
import tracemalloc

import numpy as np
import pytest
from mimo_edge.parity.tolerances import RESAMPLED
from mimo_edge.runtime.audio.resample import (
    BLOCK,
    Resampler,
    resample,
    resampled_length,
)
from mimo_edge.runtime.bundle.errors import AudioError

from tests.check import close
from tests.golden import Golden


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).uniform(-1, 1, samples).astype(np.float32)


def dense_resample(wav: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """The definition: one `[new, 2 * width + orig]` float32 kernel, convolved with stride orig."""
    orig, new = from_rate // math.gcd(from_rate, to_rate), to_rate // math.gcd(from_rate, to_rate)
    base = min(orig, new) * 0.99
    width = math.ceil(6 * orig / base)
    index = np.arange(-width, width + orig, dtype=np.float32) / np.float32(orig)
    time = (np.arange(0, -new, -1, dtype=np.float32) / np.float32(new))[:, None] + index
    time = np.clip(time * np.float32(base), -6, 6)
    window = np.cos(time * np.float32(math.pi) / 6 / 2) ** 2
    time *= np.float32(math.pi)
    sinc = np.where(time == 0, 1, np.sin(time) / np.where(time == 0, 1, time))
    kernel = sinc * (window * np.float32(base / orig))  # [new, taps]
    padded = np.pad(wav, (width, width + orig))
    frames = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1])[::orig]
    return (frames @ kernel.T).reshape(-1)[: math.ceil(new * wav.shape[0] / orig)]


def test_golden(golden: Golden, resample_case: str) -> None:
    arrays = golden.npz("mel.npz")
    rate = int(resample_case.removeprefix("rs"))
    ours = resample(arrays[f"{resample_case}.wav"], rate, 24000)
    assert ours.dtype == np.float32
    close(ours, arrays[f"{resample_case}.wav24k"], RESAMPLED, resample_case)


def test_golden_speech(golden: Golden) -> None:
    arrays = golden.npz("mel_speech.npz")
    ours = resample(arrays["wav"], int(arrays["sr"]), 24000)
    close(ours, arrays["wav24k"], RESAMPLED, "speech")


@pytest.mark.parametrize(
    ("from_rate", "to_rate"),
    [(r, 24000) for r in (8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000, 37000)]
    + [(24000, 16000), (24000, 44100), (24000, 48000), (1, 3), (3, 1), (5, 4)],
)
def test_bands_are_the_dense_kernel(from_rate: int, to_rate: int) -> None:
    for samples in (1, 2, 3, 17, 481, 5000):
        wav = noise(samples)
        expected = dense_resample(wav, from_rate, to_rate)
        ours = resample(wav, from_rate, to_rate)
        assert ours.shape == expected.shape, samples
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6, err_msg=str(samples))


@pytest.mark.parametrize("from_rate", [7, 7999, 44101, 192001])
def test_ratios_too_odd_for_the_dense_kernel(from_rate: int) -> None:
    """Nothing to compare with fits in memory, but a slow sine must stay the same sine."""
    hertz = min(from_rate, 24000) / 20
    wav = np.sin(2 * np.pi * hertz / from_rate * np.arange(3 * from_rate + 11)).astype(np.float32)
    ours = resample(wav, from_rate, 24000)
    assert ours.shape[0] == -(-wav.shape[0] * 24000 // from_rate)
    expected = np.sin(2 * np.pi * hertz / 24000 * np.arange(ours.shape[0]))
    edge = 7 * math.ceil(24000 / from_rate)  # outputs that see beyond an end
    # A short windowed sinc is no ideal filter (1e-3), and upstream's float32 kernel is worse.
    np.testing.assert_allclose(ours[edge:-edge], expected[edge:-edge], rtol=0, atol=1e-2)


@pytest.mark.parametrize("from_rate", [7999, 16000, 44100, 48000, 192000, 24000])
def test_any_cut_gives_the_whole(from_rate: int) -> None:
    wav = noise(30_000)
    whole = resample(wav, from_rate, 24000)
    cuts = np.sort(np.random.default_rng(0).integers(0, wav.shape[0], 20))
    resampler = Resampler(from_rate, 24000)
    pieces = [resampler.feed(piece) for piece in np.split(wav, cuts)]
    joined = np.concatenate([*pieces, resampler.finish()])
    np.testing.assert_allclose(joined, whole, rtol=0, atol=1e-6)


def test_blocks_join_without_a_seam() -> None:
    wav = noise(2 * BLOCK + 1234)
    whole = resample(wav, 48000, 24000)
    around = slice(BLOCK - 5000, BLOCK + 5000)
    alone = resample(wav[around], 48000, 24000)
    start = around.start // 2
    np.testing.assert_allclose(
        alone[100:-100], whole[start + 100 : start + alone.shape[0] - 100], rtol=0, atol=1e-6
    )


def test_length_is_upstreams() -> None:
    """Recorded from torch: the quotient is rounded to float32 before the ceiling."""
    assert resampled_length(240_853, 44100, 24000) == 131_077
    assert resampled_length(240_854, 44100, 24000) == 131_077  # the exact ceiling is 131078
    assert resampled_length(40_000_001, 44100, 24000) == 21_768_708
    assert resampled_length(40_000_001, 11025, 24000) == 87_074_832


def test_equal_rates_change_nothing() -> None:
    wav = noise(100)
    assert resample(wav, 24000, 24000) is wav


def test_nothing_and_silence() -> None:
    assert resample(np.zeros(0, np.float32), 44100, 24000).shape == (0,)
    assert not resample(np.zeros(44100, np.float32), 44100, 24000).any()


@pytest.mark.parametrize("rate", [0, -1, 44100.0, True, "48000", 10**10])
def test_bad_rate(rate: object) -> None:
    with pytest.raises(AudioError, match="sampling rate"):
        resample(noise(1000), rate, 24000)  # type: ignore[arg-type]


@pytest.mark.parametrize(("from_rate", "to_rate"), [(999_999_937, 24000), (24000, 999_999_937)])
def test_absurd_ratio(from_rate: int, to_rate: int) -> None:
    tracemalloc.start()
    with pytest.raises(AudioError, match=r"ratio .* common rate"):
        resample(noise(1000), from_rate, to_rate)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("wav", [np.zeros((2, 100), np.float32), np.zeros(100, np.int16)])
def test_bad_array(wav: np.ndarray) -> None:
    with pytest.raises(AudioError, match="average the channels and scale integers"):
        resample(wav, 48000, 24000)


@pytest.mark.parametrize("from_rate", [16000, 44100, 192000])
def test_memory_does_not_grow_with_length(from_rate: int) -> None:
    extra = []
    for samples in (1 << 20, 1 << 22):
        wav = np.zeros(samples, np.float32)
        tracemalloc.start()
        out = resample(wav, from_rate, 24000)
        extra.append(tracemalloc.get_traced_memory()[1] - out.nbytes)
        tracemalloc.stop()
    assert max(extra) < 8 << 20
    assert extra[1] - extra[0] < 1 << 20
