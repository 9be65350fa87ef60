"""Vocoder: a windowed transformer that predicts a spectrum, and the inverse STFT."""

import torch
import torch.nn.functional as F
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from mimo_edge.mimo_ref.qwen2 import Attend
from mimo_edge.mimo_ref.tokenizer_layers import (
    TokenizerLayer,
    masked_attend,
    rotation,
    valid_positions,
)
from torch import Tensor, nn

MAX_MAGNITUDE = 100.0


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Sum frames [B, T, W] at steps of hop -> [B, (T - 1) * hop + W]."""
    _, time, width = frames.shape
    slots = -(-width // hop)
    parts = F.pad(frames, (0, slots * hop - width)).unflatten(
        -1, (slots, hop)
    )  # [B, T, slots, hop]
    total = sum(F.pad(parts[:, :, s], (0, 0, s, slots - 1 - s)) for s in range(slots))
    return torch.as_tensor(total).flatten(1)[:, : (time - 1) * hop + width]


class InverseSTFT(nn.Module):
    """Overlap-add of windowed frames with "same" padding: T frames become T * hop samples."""

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(n_fft))

    def to_frames(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Spectrum [B, T, n_fft / 2 + 1] in parts -> frames [B, T, n_fft], not yet windowed."""
        return torch.fft.irfft(torch.complex(real, imaginary), self.n_fft, dim=-1)

    def forward(self, real: Tensor, imaginary: Tensor, valid: Tensor) -> Tensor:
        """valid bool [B, T] -> wav [B, T * hop]; frames that are not valid do not sound."""
        window = self.window.float()
        frames = self.to_frames(real, imaginary) * window * valid[..., None]
        envelope = window.square() * valid[..., None].float()
        start, length = (self.n_fft - self.hop) // 2, real.shape[1] * self.hop
        wav = overlap_add(frames, self.hop)[:, start : start + length]
        weight = overlap_add(envelope, self.hop)[:, start : start + length]
        # the weight is zero only beyond a row's end, where the wav is zero too
        return wav / torch.where(weight > 1e-11, weight, 1.0)


class Head(nn.Module):
    """Log-magnitude and phase of each frame, and the audio they make."""

    def __init__(self, config: AudioTokenizerConfig) -> None:
        super().__init__()
        self.out = nn.Linear(config.vocoder_dim, config.nfft + 2)
        self.istft = InverseSTFT(config.nfft, config.hop_length)

    def spectrum(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> the spectrum of each frame [B, T, n_fft / 2 + 1], real and imaginary."""
        x, bins = self.out(x), self.istft.n_fft // 2 + 1
        magnitude, phase = x[..., :bins].exp(), x[..., bins:]
        magnitude = magnitude.clamp(max=MAX_MAGNITUDE).float()
        return magnitude * phase.cos().float(), magnitude * phase.sin().float()

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """[B, T, D] -> wav [B, T * hop] float32"""
        return self.istft(*self.spectrum(x), valid)


class Vocoder(nn.Module):
    def __init__(self, config: AudioTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.vocoder_dim
        self.embeddings = nn.Linear(config.n_mels, dim, bias=False)
        self.layers = nn.ModuleList(
            TokenizerLayer(dim, config.vocoder_attention_heads, config.vocoder_intermediate_dim)
            for _ in range(config.vocoder_num_layers)
        )
        self.layer_norm = nn.LayerNorm(dim)
        self.head = Head(config)

    def transform(self, mel: Tensor, lengths: Tensor, attend: Attend | None = None) -> Tensor:
        """[B, T, n_mels] -> [B, T, D]. `attend` may be another form of that attention."""
        config, time = self.config, mel.shape[1]
        x = self.embeddings(mel)
        head_dim = config.vocoder_dim // config.vocoder_attention_heads
        attend = attend or masked_attend(lengths, time, False, config.vocoder_attn_window_size)
        rotate = rotation(time, head_dim, config.rope_theta, x)
        for index, layer in enumerate(self.layers):
            x = layer(x, index, rotate, attend)
        return self.layer_norm(x)

    def forward(self, mel: Tensor, lengths: Tensor, upstream_batch: bool = False) -> Tensor:
        """mel [B, T, n_mels] -> wav [B, T * hop]. See TokenizerDecoder for `upstream_batch`."""
        valid = valid_positions(lengths, mel.shape[1])
        x = self.transform(mel, lengths) * valid[..., None]
        wav = self.head(x, torch.ones_like(valid) if upstream_batch else valid)
        if upstream_batch:
            return wav
        return wav * valid_positions(lengths * self.config.hop_length, wav.shape[1])
