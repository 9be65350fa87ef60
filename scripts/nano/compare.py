"""How near one reading of a text is to another: log-mel distance and pitch, along a time warp.

Independent of the models: a reading that no transcription understands still gets its figures.
"""

import numpy as np
import torch
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from mimo_edge.mimo_ref.mel import log_mel
from numpy.typing import NDArray

Floats = NDArray[np.floating]
_STEP = 2  # mel frames to a frame here: 20 ms
_LOWEST, _HIGHEST = 60.0, 400.0  # Hz
_VOICED = 0.6  # of the energy, what one period later is still the same
_LOG_FLOOR = 1e-2  # as the training losses: the noise floor is not compared


def compare(made: torch.Tensor, wanted: torch.Tensor, config: AudioTokenizerConfig) -> Floats:
    """Two wavs [N] -> [mel distance, pitch correlation]; nan where too little is voiced."""
    mels = [_frames(wav, config) for wav in (made, wanted)]
    first, second = warp(*mels)
    distance = np.abs(mels[0][first] - mels[1][second]).mean()
    pitches = [pitch(wav.numpy(), config) for wav in (made, wanted)]
    a, b = pitches[0][first], pitches[1][second]
    both = ~np.isnan(a) & ~np.isnan(b)
    if both.sum() < 10:
        return np.array([distance, np.nan])
    return np.array([distance, np.corrcoef(np.log(a[both]), np.log(b[both]))[0, 1]])


def warp(a: Floats, b: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Frames a [T, D] and b [S, D] -> the pairs of the cheapest monotonic path, ends included."""
    cost = np.abs(a[:, None] - b[None]).mean(-1)  # [T, S]
    total = np.full((len(a) + 1, len(b) + 1), np.inf)
    total[0, 0] = 0.0
    for i in range(len(a)):
        for j in range(len(b)):
            before = min(total[i, j], total[i, j + 1], total[i + 1, j])
            total[i + 1, j + 1] = cost[i, j] + before
    i, j, path = len(a), len(b), []
    while i and j:
        path.append((i - 1, j - 1))
        moves = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(moves, key=lambda move: total[move])
    first, second = np.array(path[::-1]).T
    return first, second


def pitch(wav: Floats, config: AudioTokenizerConfig) -> Floats:
    """wav [N] -> Hz of each frame [T] by autocorrelation; nan where there is no voice."""
    rate, hop = config.sampling_rate, config.hop_length * _STEP
    size = 2 * hop
    shortest, longest = int(rate / _HIGHEST), int(rate / _LOWEST)
    padded = np.pad(wav, (size // 2, size // 2 + longest))
    found = np.full(1 + len(wav) // hop, np.nan)
    for frame in range(len(found)):
        start = frame * hop
        piece = padded[start : start + size]
        if len(piece) < size or np.sqrt(np.mean(piece**2)) < _LOG_FLOOR:
            continue
        later = np.lib.stride_tricks.sliding_window_view(
            padded[start + shortest : start + longest + size], size
        )  # [lags, size]
        likeness = later @ piece / (np.linalg.norm(later, axis=1) * np.linalg.norm(piece) + 1e-9)
        peak = likeness.max()
        if peak > _VOICED:
            # the first lag that is nearly as good, or an octave below would often win
            found[frame] = rate / (shortest + int(np.argmax(likeness > 0.9 * peak)))
    return found


def _frames(wav: torch.Tensor, config: AudioTokenizerConfig) -> Floats:
    """wav [N] -> log-mel [T, n_mels], one frame in _STEP."""
    mel = np.exp(log_mel(wav, config).numpy()[::_STEP])
    return np.log(mel + _LOG_FLOOR)
