"""Tokenizer encoder: log-mel frames to the states that the quantiser turns into codes."""

import torch
import torch.nn.functional as F
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from mimo_edge.mimo_ref.tokenizer_layers import (
    TokenizerLayer,
    masked_attend,
    rotation,
    valid_positions,
)
from torch import Tensor, nn


class TokenizerEncoder(nn.Module):
    """Two convolutions, a transformer with an early skip, and down-sampling to one code a frame."""

    PREFIX = "encoder."

    def __init__(self, config: AudioTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        dim, kernel = config.d_model, config.kernel_size
        self.conv1 = nn.Conv1d(config.n_mels, dim, kernel, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, kernel, stride=config.stride_size, padding=1)
        self.layers = nn.ModuleList(
            TokenizerLayer(dim, config.encoder_attention_heads, config.encoder_ffn_dim)
            for _ in range(config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(dim)
        pool = config.avg_pooler
        self.down_sample_layer = nn.Sequential(
            nn.Conv1d(dim, dim, pool, pool, bias=False), nn.GELU()
        )
        self.down_sample_norm = nn.LayerNorm(dim)

    def conv_length(self, mel_length: Tensor) -> Tensor:
        """Positions after conv2."""
        kernel, stride = self.config.kernel_size, self.config.stride_size
        return (mel_length + 3 - kernel + 2 - kernel) // stride + 1

    def code_length(self, mel_length: Tensor) -> Tensor:
        """Code frames of a mel length."""
        pool = self.config.avg_pooler
        return (self.conv_length(mel_length) + pool - 1) // pool

    def convolve(self, mel: Tensor, lengths: Tensor, upstream_batch: bool) -> Tensor:
        """mel [B, T, n_mels] zero beyond lengths -> [B, T2, D]."""
        x = F.gelu(self.conv1(mel.transpose(1, 2)))
        if not upstream_batch:  # conv2 must see its own zero padding at a row's end
            x = x * valid_positions(lengths, x.shape[-1])[:, None]
        return F.gelu(self.conv2(x)).transpose(1, 2)

    def transform(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, T2, D] -> [B, T2, D]: the layers, the skip, the norm."""
        config, time = self.config, x.shape[1]
        head_dim = config.d_model // config.encoder_attention_heads
        attend = masked_attend(
            lengths, time, config.encoder_causal, config.encoder_attn_window_size
        )
        rotate = rotation(time, head_dim, config.rope_theta, x)
        skip = torch.zeros_like(x)
        for index, layer in enumerate(self.layers):
            x = layer(x, index, rotate, attend)
            if config.encoder_skip_layer_id == index + 1:
                skip = x
        return self.layer_norm(x + skip)

    def down_sample(self, x: Tensor, lengths: Tensor, upstream_batch: bool) -> Tensor:
        """[B, T2, D] -> [B, ceil(T2 / pool), D]; an incomplete last frame is filled with zeros."""
        time, pool = x.shape[1], self.config.avg_pooler
        if upstream_batch:  # ... or, if shorter than the batch, with copies of its last state
            index = torch.arange(time, device=x.device).minimum(lengths[:, None] - 1)
            x = x.gather(1, index[..., None].expand_as(x))
        else:
            x = x * valid_positions(lengths, time)[..., None]
        x = F.pad(x, (0, 0, 0, -time % pool))
        return self.down_sample_norm(self.down_sample_layer(x.transpose(1, 2)).transpose(1, 2))

    def forward(self, mel: Tensor, lengths: Tensor, upstream_batch: bool = False) -> Tensor:
        """mel [B, T, n_mels], lengths [B] -> states [B, T_code, D], zero beyond a row's codes.

        Each row gets what it would get alone. Upstream's result depends on the other rows: a
        shorter row's convolutions read what lies beyond its end. `upstream_batch` reproduces that.
        """
        mel = mel * valid_positions(lengths, mel.shape[1])[..., None]
        x = self.convolve(mel.to(self.conv1.weight.dtype), lengths, upstream_batch)
        conv_lengths = self.conv_length(lengths)
        x = self.transform(x, conv_lengths)
        x = self.down_sample(x, conv_lengths, upstream_batch)
        return x * valid_positions(self.code_length(lengths), x.shape[1])[..., None]
