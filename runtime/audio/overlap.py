"""Overlap-add that goes on: the inverse STFT of a stream, with no seam between two calls."""

import numpy as np
from mimo_edge.runtime.backends.base import Floats


class OverlapAdd:
    """Windowed frames to sound. T frames become T * hop samples in all, as in a whole decode.

    A sample sounds when every frame that reaches it is there, so sound is half of what neighbours
    share (360 samples) behind the frames.
    """

    def __init__(self, n_fft: int, hop: int) -> None:
        self.n_fft, self.hop = n_fft, hop
        self._tail = np.zeros((2, n_fft - hop), np.float32)  # of the sum, of the windows' squares
        self._silent = (n_fft - hop) // 2  # samples before the first that sounds

    def push(self, frames: Floats, weight: Floats) -> Floats:
        """Windowed frames [T, n_fft], the window's square [n_fft] -> what is complete of them."""
        if not len(frames):
            return np.zeros(0, np.float32)
        reach = self.n_fft - self.hop
        total = np.zeros((2, len(frames) * self.hop + reach), np.float32)
        total[:, :reach] = self._tail
        for index, frame in enumerate(frames):
            start = index * self.hop
            total[0, start : start + self.n_fft] += frame
            total[1, start : start + self.n_fft] += weight
        self._tail = total[:, len(frames) * self.hop :].copy()
        return self._sounding(total[:, : len(frames) * self.hop])

    def finish(self) -> Floats:
        """What the last frames still hold."""
        return self._sounding(self._tail[:, : (self.n_fft - self.hop) // 2])

    def _sounding(self, total: Floats) -> Floats:
        skipped = min(self._silent, total.shape[1])
        self._silent -= skipped
        total = total[:, skipped:]
        wav: Floats = total[0] / np.where(total[1] > 1e-11, total[1], 1.0)
        return wav
