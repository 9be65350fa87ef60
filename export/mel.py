"""Piece `mel`: wav -> log-mel. The STFT is a strided convolution with a windowed Fourier basis."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from mimo_edge.export.piece import Piece, Port
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from mimo_edge.mimo_ref.mel import LOG_FLOOR, mel_filters
from torch import Tensor, nn


def fourier_basis(n_fft: int, window_size: int) -> np.ndarray:
    """Rows cos then -sin of every bin, under a periodic Hann window: [n_fft + 2, 1, n_fft]."""
    window = np.zeros(n_fft)
    left = (n_fft - window_size) // 2
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_size) / window_size)
    window[left : left + window_size] = hann
    angle = 2 * np.pi * np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)) / n_fft
    basis = np.concatenate((np.cos(angle), -np.sin(angle))) * window
    return basis[:, None].astype(np.float32)


class Mel(nn.Module):
    def __init__(self, config: AudioTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        bins = config.nfft // 2 + 1
        self.basis: Tensor
        self.filters: Tensor
        self.register_buffer("basis", torch.zeros(2 * bins, 1, config.nfft))
        self.register_buffer("filters", torch.zeros(bins, config.n_mels))

    def forward(self, wav: Tensor) -> Tensor:
        half = self.config.nfft // 2
        padded = F.pad(wav[None, None], (half, half), mode="reflect")
        spectrum = F.conv1d(padded, self.basis, stride=self.config.hop_length)[0]  # [2 F, T]
        bins = half + 1
        real, imaginary = spectrum[:bins], spectrum[bins:]
        magnitude = (real.square() + imaginary.square()).sqrt()
        return (magnitude.T @ self.filters).clamp(min=LOG_FLOOR).log()


def piece(config: AudioTokenizerConfig) -> Piece:
    return Piece(
        name="mel",
        module=Mel(config),
        inputs=(Port("wav", torch.float32, ("samples",)),),
        outputs=(Port("mel", torch.float32, ("mel_frames", config.n_mels)),),
        owners={},
        constants={
            "basis": partial(fourier_basis, config.nfft, config.window_size),
            "filters": lambda: mel_filters(config).numpy(),
        },
    )
