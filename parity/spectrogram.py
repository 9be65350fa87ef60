"""Sounds to look at."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mimo_edge.runtime.backends.base import Floats

_FFT, _HOP, _TOP = 2048, 240, 5000  # the last in Hz: a voice has little above
_QUIETEST, _LOUDEST = -50, 40  # dB


def spectrum(wav: Floats, rate: int) -> Floats:
    """wav [N] -> dB [bins up to 5 kHz, frames of 10 ms at 24 kHz]."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wav, _FFT // 2), _FFT)[::_HOP]
    bins = _TOP * _FFT // rate
    magnitude = np.abs(np.fft.rfft(frames * np.hanning(_FFT)))[:, :bins]
    return 20 * np.log10(magnitude.T + 1e-3)


def draw(sounds: Mapping[str, Floats], rate: int, path: Path, title: str = "") -> bool:
    """Spectrograms one above the other, as a picture; False, and nothing, without matplotlib."""
    with tempfile.TemporaryDirectory() as cache:
        # matplotlib keeps a list of all fonts, below HOME unless told otherwise
        own = os.environ.setdefault("MPLCONFIGDIR", cache) == cache
        try:
            return _draw(sounds, rate, path, title)
        except ImportError:
            return False
        finally:
            if own:
                del os.environ["MPLCONFIGDIR"]


def _draw(sounds: Mapping[str, Floats], rate: int, path: Path, title: str) -> bool:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2 * len(sounds)), layout="constrained")
    figure.suptitle(title)
    longest = max(map(len, sounds.values())) / rate
    rows = figure.subplots(len(sounds), 1, squeeze=False)[:, 0]
    for axes, (what, wav) in zip(rows, sounds.items(), strict=True):
        axes.imshow(
            spectrum(wav, rate),
            origin="lower",
            aspect="auto",
            vmin=_QUIETEST,
            vmax=_LOUDEST,
            extent=(0, len(wav) / rate, 0, _TOP / 1000),
        )
        axes.set(xlim=(0, longest), ylabel=f"{what}, kHz")
    axes.set(xlabel="seconds")
    figure.savefig(path, dpi=100)
    return True
