"""Tokenizer decoder: quantised states to a mel-like spectrogram, and on to audio."""

import torch
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from mimo_edge.mimo_ref.tokenizer_layers import (
    TokenizerLayer,
    masked_attend,
    rotation,
    valid_positions,
)
from mimo_edge.mimo_ref.vocoder import Vocoder
from torch import Tensor, nn


class UpSample(nn.Module):
    """Transposed convolution, GroupNorm with one group, then a trim on the right.

    The norm runs over all channels and all time, before the trim: changing the last frame changes
    the first. So nothing downstream is causal, and a streamed decode never equals a whole one.
    """

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(in_dim, out_dim, kernel, stride)
        self.norm = nn.GroupNorm(1, out_dim)
        self.stride, self.trim = stride, max(0, kernel - stride)

    def normalize(self, x: Tensor, lengths: Tensor) -> Tensor:
        """GroupNorm of x [B, C, T] over each row's own `lengths` [B], in float32."""
        valid = valid_positions(lengths, x.shape[-1])[:, None]
        inside, count = x.float() * valid, (lengths * x.shape[1]).float()[:, None, None]
        mean = inside.sum((1, 2), keepdim=True) / count
        centred = (x.float() - mean) * valid
        variance = centred.square().sum((1, 2), keepdim=True) / count
        scaled = centred * torch.rsqrt(variance + self.norm.eps)
        return scaled.to(x.dtype) * self.norm.weight[:, None] + self.norm.bias[:, None]

    def forward(self, x: Tensor, lengths: Tensor, upstream_batch: bool) -> tuple[Tensor, Tensor]:
        """x [B, T, D_in] -> [B, T * stride, D_out] and the new lengths; zero beyond them."""
        x = x * valid_positions(lengths, x.shape[1])[..., None]
        x = self.conv(x.transpose(1, 2))
        new_lengths = lengths * self.stride
        x = self.norm(x) if upstream_batch else self.normalize(x, new_lengths + self.trim)
        x = x[..., : x.shape[-1] - self.trim].transpose(1, 2)
        return x * valid_positions(new_lengths, x.shape[1])[..., None], new_lengths


class TokenizerDecoder(nn.Module):
    PREFIX = "decoder."

    def __init__(self, config: AudioTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.d_model
        self.dconv1 = UpSample(dim, dim, config.avg_pooler, config.avg_pooler)
        self.layers = nn.ModuleList(
            TokenizerLayer(dim, config.decoder_attention_heads, config.decoder_ffn_dim)
            for _ in range(config.decoder_layers)
        )
        self.layer_norm = nn.LayerNorm(dim)
        self.dconv2 = UpSample(
            dim, config.n_mels, config.decoder_kernel_size, config.decoder_stride_size
        )
        self.vocoder = Vocoder(config)

    def transform(self, x: Tensor, lengths: Tensor) -> Tensor:
        config, time = self.config, x.shape[1]
        head_dim = config.d_model // config.decoder_attention_heads
        attend = masked_attend(
            lengths, time, config.decoder_causal, config.decoder_attn_window_size
        )
        rotate = rotation(time, head_dim, config.rope_theta, x)
        for index, layer in enumerate(self.layers):
            x = layer(x, index, rotate, attend)
        return self.layer_norm(x)

    def forward(self, states: Tensor, lengths: Tensor, upstream_batch: bool = False) -> Tensor:
        """Quantised states [B, T, D], lengths [B] -> wav [B, T * samples_per_frame] float32.

        Each row gets what it would get alone, and silence beyond its end. In upstream the norms
        include the padding and the tail is rubbish; `upstream_batch` reproduces both.
        """
        states = states.to(self.layer_norm.weight.dtype)
        x, lengths = self.dconv1(states, lengths, upstream_batch)
        x = self.transform(x, lengths)
        mel, lengths = self.dconv2(x, lengths, upstream_batch)
        return self.vocoder(mel, lengths, upstream_batch)
