"""How far one sound is from another: log-mel, harmonics, and spectra at several resolutions.

All look at `log(magnitude + FLOOR)`: below it lies the noise floor of the clips, which cannot be
predicted and would only teach noise.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from mimo_edge.mimo_ref.mel import log_mel, mel_filters
from torch import Tensor

FLOOR = 1e-2
RESOLUTIONS = ((2048, 512), (1024, 256), (512, 128), (256, 64))  # n_fft, hop
_FINE = 2048, 480  # n_fft and hop that tell the harmonics of a low voice apart
_FINE_TOP = 6000.0  # Hz; a voice has few above


class Distances:
    """Distances between batches of sound [B, N]; all are differentiable."""

    def __init__(self, config: AudioTokenizerConfig) -> None:
        self.config = config
        self.filters = mel_filters(config)  # [F, n_mels]
        self.fine_filters = mel_filters(replace(config, nfft=_FINE[0], fmax=_FINE_TOP))
        sizes = {config.nfft, _FINE[0], *dict(RESOLUTIONS)}
        self.windows = {n: torch.hann_window(n) for n in sizes}

    def magnitude(self, wav: Tensor, n_fft: int, hop: int) -> Tensor:
        """wav [B, N] -> [B, F, T]. The gradient of a magnitude is kept finite at zero."""
        window = self.windows[n_fft]
        spectrum = torch.stft(wav, n_fft, hop, window=window, return_complex=True)
        return torch.view_as_real(spectrum).square().sum(-1).clamp(min=1e-9).sqrt()

    def log_mel(self, wav: Tensor) -> Tensor:
        """wav [B, N] -> [B, 1 + N // hop, n_mels], as `mimo_ref.mel` but for the floor."""
        spectrum = self.magnitude(wav, self.config.nfft, self.config.hop_length)
        return (spectrum.transpose(1, 2) @ self.filters + FLOOR).log()

    def mel(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Mean absolute difference of the log-mels."""
        return F.l1_loss(self.log_mel(made), self.log_mel(wanted))

    def harmonics(self, made: Tensor, wanted: Tensor) -> Tensor:
        """As `mel`, below _FINE_TOP and with twice the resolution in frequency.

        Without it a voice comes out as a whisper: the mel of 25 Hz bins hardly sees harmonics.
        """
        ours, theirs = (
            (self.magnitude(wav, *_FINE).transpose(1, 2) @ self.fine_filters + FLOOR).log()
            for wav in (made, wanted)
        )
        return F.l1_loss(ours, theirs)

    def stft(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Spectral convergence and log-magnitude difference, mean over the resolutions."""
        total = torch.zeros(())
        for n_fft, hop in RESOLUTIONS:
            ours, theirs = self.magnitude(made, n_fft, hop), self.magnitude(wanted, n_fft, hop)
            gap = (ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)
            log_gap = F.l1_loss((ours + FLOOR).log(), (theirs + FLOOR).log())
            total = total + gap.mean() + log_gap
        return total / len(RESOLUTIONS)


@torch.no_grad()
def codec_figures(distances: Distances, pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Mean distances of sounds [N] from what a codec should have made, as (made, wanted).

    `plain_mel` has the floor of the mel front end.
    """
    rows = []
    for made, wanted in pairs:
        size = min(len(made), len(wanted))
        pair = made[None, :size], wanted[None, :size]
        exact = [log_mel(wav[0], distances.config) for wav in pair]
        plain = (exact[0] - exact[1]).abs().mean()
        rows.append(torch.stack((distances.mel(*pair), distances.stft(*pair), plain)))
    means = torch.stack(rows).mean(0).tolist()
    return {n: round(v, 4) for n, v in zip(("mel", "stft", "plain_mel"), means, strict=True)}
