"""Audio front end: resampling to the model's rate, and the log-mel spectrogram."""

import math

import torch
import torch.nn.functional as F
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from torch import Tensor

LOG_FLOOR = 1e-7


def resample(wav: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Band-limited sinc interpolation with a Hann window; wav [N] -> [ceil(N * to / from)].

    Width 6, roll-off 0.99, kernel in float32: the defaults of `torchaudio.functional.resample`.
    """
    if from_rate == to_rate:
        return wav
    common = math.gcd(from_rate, to_rate)
    old, new = from_rate // common, to_rate // common
    lobes, cutoff = 6, min(old, new) * 0.99
    width = math.ceil(lobes * old / cutoff)
    offsets = torch.arange(-width, width + old, dtype=torch.float32)[None, None] / old
    phases = torch.arange(0, -new, -1, dtype=torch.float32)[:, None, None] / new
    t = ((phases + offsets) * cutoff).clamp(-lobes, lobes)
    window = torch.cos(t * math.pi / lobes / 2) ** 2
    kernel = torch.sinc(t) * window * (cutoff / old)  # [new, 1, 2 * width + old]
    padded = F.pad(wav.float()[None], (width, width + old))
    resampled = F.conv1d(padded[:, None], kernel, stride=old).transpose(1, 2).flatten()
    # the length, too, is rounded to float32 before it is rounded up
    length = int(torch.tensor(new * wav.shape[-1] / old, dtype=torch.float32).ceil())
    return resampled[:length]


def mel_filters(config: AudioTokenizerConfig) -> Tensor:
    """HTK mel filter bank without normalisation, [n_fft // 2 + 1, n_mels]."""

    def to_mel(hz: float) -> float:
        return 2595.0 * math.log10(1.0 + hz / 700.0)

    top = config.sampling_rate / 2 if config.fmax is None else config.fmax
    frequencies = torch.linspace(0, config.sampling_rate // 2, config.nfft // 2 + 1)
    mels = torch.linspace(to_mel(config.fmin), to_mel(top), config.n_mels + 2)
    corners = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)  # [n_mels + 2]
    widths = corners.diff()
    distance = corners[None] - frequencies[:, None]  # [F, n_mels + 2]
    rising, falling = -distance[:, :-2] / widths[:-1], distance[:, 2:] / widths[1:]
    return torch.minimum(rising, falling).clamp(min=0)


def log_mel(wav: Tensor, config: AudioTokenizerConfig) -> Tensor:
    """wav [N] at the model's rate -> natural-log mel [1 + N // hop, n_mels].

    Magnitude (not power) of a centred STFT with reflected edges, which needs N > n_fft / 2 samples;
    raises ValueError below that.
    """
    if wav.shape[-1] <= config.nfft // 2:
        raise ValueError(f"{wav.shape[-1]} samples are too few, need {config.nfft // 2 + 1}")
    spectrum = torch.stft(
        wav.float(),
        config.nfft,
        config.hop_length,
        config.window_size,
        torch.hann_window(config.window_size),
        return_complex=True,
    ).abs()  # [F, T]
    return (spectrum.T @ mel_filters(config)).clamp(min=LOG_FLOOR).log()
