"""Piece `tokenizer_decoder`: codes of any number of codebooks -> wav."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from mimo_edge.export.piece import Piece, Port
from mimo_edge.mimo_ref import attention
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.mimo_ref.qwen2 import Attend
from mimo_edge.mimo_ref.rvq import ResidualVectorQuantizer
from mimo_edge.mimo_ref.tokenizer_layers import valid_positions
from torch import Tensor, nn


def inverse_fourier_matrix(n_fft: int, imaginary: bool) -> np.ndarray:
    """[n_fft / 2 + 1, n_fft]: the inverse real transform of one part of the spectrum.

    The imaginary parts at DC and Nyquist have no effect, as in irfft.
    """
    bins = np.arange(n_fft // 2 + 1)
    angle = 2 * np.pi * np.outer(bins, np.arange(n_fft)) / n_fft
    edge = (bins == 0) | (2 * bins == n_fft)
    if imaginary:
        weight, wave = np.where(edge, 0.0, 2.0), -np.sin(angle)
    else:
        weight, wave = np.where(edge, 1.0, 2.0), np.cos(angle)
    return (weight[:, None] * wave / n_fft).astype(np.float32)


def blocked_attend(lengths: Tensor, window: tuple[int, int]) -> Attend:
    """Windowed attention in blocks of left + right queries: memory and work linear in time.

    A block of queries sees the keys of two neighbouring blocks of a sequence shifted by `left`.
    """
    left, right = window
    size = left + right

    def blocks(x: Tensor, before: int, after: int) -> Tensor:
        """[B, H, T, D] -> [B, H, n, size, D], with zeros before and after."""
        batch, heads, time, dim = x.shape
        fill = -time % size
        return F.pad(x, (0, 0, before, after + fill)).reshape(batch, heads, -1, size, dim)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, time, dim = q.shape
        queries = blocks(q, 0, 0).transpose(1, 2).flatten(0, 1)  # [B * n, H, size, D]
        neighbours = []
        for x in (k, v):
            parts = blocks(x, left, right)  # [B, H, n + 1, size, D]
            pairs = torch.cat((parts[:, :, :-1], parts[:, :, 1:]), dim=3)
            neighbours.append(pairs.transpose(1, 2).flatten(0, 1))  # [B * n, H, 2 * size, D]
        mixed = attention.attention(queries, neighbours[0], neighbours[1], mask(time))
        mixed = mixed.reshape(batch, -1, heads, size, dim).transpose(1, 2)
        return mixed.reshape(batch, heads, -1, dim)[:, :, :time]

    known: list[Tensor] = []

    def mask(time: int) -> Tensor:
        if not known:
            known.append(block_mask(time))
        return known[0]

    def block_mask(time: int) -> Tensor:
        """bool [B * n, 1, size, 2 * size]"""
        query, key = torch.arange(size)[:, None], torch.arange(2 * size) - left
        near = (key - query >= -left) & (key - query <= right)  # [size, 2 * size]
        starts = torch.arange((time + size - 1) // size) * size  # [n]
        position = starts[:, None] + key  # [n, 2 * size]
        inside = (position >= 0) & (position < lengths[:, None, None])  # [B, n, 2 * size]
        # a query always sees itself, so that rows of padding stay finite
        return (near & inside[:, :, None] | (key == query)).flatten(0, 1)[:, None]

    return attend


class MatrixInverse(nn.Module):
    """The inverse transform of each frame as two products, in the place of the tokenizer's own."""

    def __init__(self, tokenizer: AudioTokenizer) -> None:
        super().__init__()
        n_fft = tokenizer.config.nfft
        self.real: Tensor
        self.imaginary: Tensor
        self.register_buffer("real", torch.zeros(n_fft // 2 + 1, n_fft))
        self.register_buffer("imaginary", torch.zeros(n_fft // 2 + 1, n_fft))
        istft = tokenizer.decoder.vocoder.head.istft
        istft.to_frames = self.to_frames  # type: ignore[method-assign]

    def to_frames(self, real: Tensor, imaginary: Tensor) -> Tensor:
        return real @ self.real.float() + imaginary @ self.imaginary.float()

    @staticmethod
    def constants(n_fft: int) -> dict[str, Callable[[], np.ndarray]]:
        """Its matrices, as a module named `inverse` of a piece."""
        return {
            "inverse.real": partial(inverse_fourier_matrix, n_fft, False),
            "inverse.imaginary": partial(inverse_fourier_matrix, n_fft, True),
        }


def dequantize(quantizer: ResidualVectorQuantizer, codes: Tensor) -> Tensor:
    """One look-up in all codebooks laid end to end: codes [B, K, T] -> [B, T, D] float32."""
    codebooks = list(quantizer.codebooks)
    sizes = torch.arange(len(codebooks))  # first row of each codebook
    offsets = torch.zeros_like(sizes)
    for index, codebook in enumerate(codebooks[:-1]):
        offsets = offsets + torch.where(sizes > index, codebook.shape[0], 0)
    rows = codes + offsets[: codes.shape[1], None]
    return F.embedding(rows, torch.cat(codebooks)).sum(1)


class TokenizerDecoderGraph(nn.Module):
    def __init__(self, tokenizer: AudioTokenizer) -> None:
        super().__init__()
        self.quantizer, self.decoder = tokenizer.quantizer, tokenizer.decoder
        self.inverse = MatrixInverse(tokenizer)

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        decoder, vocoder = self.decoder, self.decoder.vocoder
        states = dequantize(self.quantizer, codes).to(decoder.layer_norm.weight.dtype)
        x, lengths = decoder.dconv1(states, lengths, False)
        x = decoder.transform(x, lengths)
        mel, lengths = decoder.dconv2(x, lengths, False)
        window = decoder.config.vocoder_attn_window_size
        attend = blocked_attend(lengths, window) if min(window) >= 0 < max(window) else None
        valid = valid_positions(lengths, mel.shape[1])
        x = vocoder.transform(mel, lengths, attend) * valid[..., None]
        wav = vocoder.head(x, valid)
        return wav * valid_positions(lengths * decoder.config.hop_length, wav.shape[1])


def piece(tokenizer: AudioTokenizer) -> Piece:
    return Piece(
        name="tokenizer_decoder",
        module=TokenizerDecoderGraph(tokenizer),
        inputs=(
            Port("codes", torch.int64, ("batch", "codebooks", "frames")),
            Port("lengths", torch.int64, ("batch",)),
        ),
        outputs=(Port("wav", torch.float32, ("batch", "samples")),),
        owners={"quantizer": tokenizer.quantizer, "decoder": tokenizer.decoder},
        constants=MatrixInverse.constants(tokenizer.config.nfft),
    )
