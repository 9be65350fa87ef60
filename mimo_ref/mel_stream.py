"""The causal half of a decode that goes on: new codes to mel frames, with the state of each row.

What a whole decode computes over all time is carried along: keys and values in a ring, the input
that the last transposed convolution still needs, and the statistics of the two GroupNorms, which
run: a frame is normalised with those of all frames up to its own. That is where a stream differs
from the whole decode; all else is the same.
"""

import torch
from mimo_edge.mimo_ref import attention, rotary
from mimo_edge.mimo_ref.tokenizer_decoder import TokenizerDecoder, UpSample
from torch import Tensor, nn

STATISTICS = 4  # mean and mean square of both norms


class MelStream(nn.Module):
    """Runs a decoder's layers on the frames that are new.

    A row sees `window` frames back. Its keys and values lie in a ring of `ring` frames with
    `most` frames of room behind: a call brings at most `most` frames, and the frames that count
    must not pass the ring's end (the caller cuts there). What a call writes beyond `lengths` is
    garbage that no later query sees, for which the ring must exceed window + most.
    """

    def __init__(self, decoder: TokenizerDecoder, window: int, ring: int, most: int) -> None:
        super().__init__()
        assert ring > window + most, (ring, window, most)
        config = decoder.config
        self.decoder = decoder
        self.pooler = config.avg_pooler  # positions of the transformer in one frame
        left = config.decoder_attn_window_size[0]
        self.window = min(window * self.pooler, left if left >= 0 else window * self.pooler)
        self.ring = ring * self.pooler
        self.capacity = (ring + most) * self.pooler
        self.heads = config.decoder_attention_heads
        self.head_dim = config.d_model // self.heads
        conv = decoder.dconv2.conv
        # inputs before a frame's own that reach into its output
        self.overlap = max(1, (conv.kernel_size[0] - 1) // conv.stride[0])

    def empty(self, rows: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Statistics [B, 4], overlap [B, overlap, D] and caches of rows that have no past."""
        like = self.decoder.layer_norm.weight
        shape = (rows, self.heads, self.capacity, self.head_dim)
        caches = [like.new_zeros(shape) for _ in range(2 * len(self.decoder.layers))]
        last = torch.zeros(rows, self.overlap, self.decoder.config.d_model)
        return torch.zeros(rows, STATISTICS), last, caches

    def forward(
        self,
        states: Tensor,
        lengths: Tensor,
        positions: Tensor,
        weights: Tensor,
        statistics: Tensor,
        last: Tensor,
        *caches: Tensor,
    ) -> tuple[Tensor, ...]:
        """Quantised states [B, T, D], of which `lengths` [B] count, after `positions` [B] frames.

        `weights` [B]: how many frames the statistics stand for. Returns mel [B, T * M, n_mels] in
        float32 (M mel frames a frame; beyond `lengths` garbage), then for the next call statistics,
        last (in float32 too, so that any host can keep it) and caches: keys of every layer, then
        values, each [B, H, S, D].
        """
        decoder, frames = self.decoder, states.shape[1]
        x = states.to(decoder.layer_norm.weight.dtype)
        x = decoder.dconv1.conv(x.transpose(1, 2))
        x, first = running_norm(decoder.dconv1, x, frames, weights, statistics[:, :2])
        x, updated = self.transform(x.transpose(1, 2), positions * self.pooler, caches)
        x = torch.cat((last.to(x.dtype), x), dim=1)  # [B, overlap + T * pooler, D]
        conv = decoder.dconv2.conv
        begin = self.overlap * conv.stride[0]
        wide = conv(x.transpose(1, 2))[..., begin : begin + frames * self.pooler * conv.stride[0]]
        mel, second = running_norm(decoder.dconv2, wide, frames, weights, statistics[:, 2:])
        known = torch.cat((first, second), dim=-1)  # [B, 1 + T, 4]
        statistics = _at(known, lengths[:, None])[:, 0]
        kept = (lengths * self.pooler)[:, None] + torch.arange(self.overlap, device=x.device)
        return (mel.transpose(1, 2).float(), statistics, _at(x, kept).float(), *updated)

    def transform(
        self, x: Tensor, start: Tensor, caches: tuple[Tensor, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """x [B, T, D] at positions from `start` [B] on, through all layers, and the new caches."""
        decoder, updated = self.decoder, list(caches)
        positions = start[:, None] + torch.arange(x.shape[1], device=x.device)
        slot = start - start // self.ring * self.ring  # where the first one is written
        mask = self.visible(positions, slot)
        tables = rotary.wrapped_tables(positions, self.head_dim, decoder.config.rope_theta, x.dtype)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for index, new in ((layer, k), (len(decoder.layers) + layer, v)):
                updated[index] = attention.write(updated[index], new, slot)
            keys, values = updated[layer], updated[len(decoder.layers) + layer]
            return attention.attention(q, keys, values, mask)

        for index, layer in enumerate(decoder.layers):
            x = layer(x, index, lambda y: rotary.rotate(y, *tables), attend)
        return decoder.layer_norm(x), updated

    def visible(self, positions: Tensor, slot: Tensor) -> Tensor:
        """Slots that queries at positions [B, T] see, the first of them at `slot`: [B, 1, T, S].

        A slot holds what is new, or, before that, this lap of the ring, or, behind, the last lap.
        """
        time = positions.shape[1]
        slots = torch.arange(self.capacity, device=positions.device)
        offset = slots - slot[:, None]  # [B, S]
        key = positions[:, :1] + torch.where(offset < time, offset, offset - self.ring)
        inside = (slots < self.ring) | (offset >= 0) & (offset < time)
        distance = positions[..., None] - key[:, None]  # query minus key, [B, T, S]
        near = (distance >= 0) & (distance <= self.window)
        return (near & (inside & (key >= 0))[:, None])[:, None]


def running_norm(
    part: UpSample, x: Tensor, frames: int, weights: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor]:
    """GroupNorm of x [B, C, T'], T' / frames columns a frame, with statistics that run.

    statistics [B, 2] (mean, mean square) stand for `weights` [B] frames. Returns x normalised, and
    the statistics before and after each frame [B, 1 + frames, 2]. All in float32.
    """
    parts = x.float().unflatten(-1, (frames, -1))  # [B, C, frames, columns]
    own = torch.stack((parts.mean((1, 3)), parts.square().mean((1, 3))), dim=-1)
    count = torch.arange(1, frames + 1, device=x.device) + weights[:, None]  # [B, frames]
    total = statistics[:, None] * weights[:, None, None].float() + own.cumsum(1)
    running = total / count[..., None].float()
    mean = running[..., 0]
    variance = (running[..., 1] - mean.square()).clamp(min=0.0)
    scale = torch.rsqrt(variance + part.norm.eps)
    scaled = (parts - mean[:, None, :, None]) * scale[:, None, :, None]
    normed = scaled.flatten(2).to(x.dtype) * part.norm.weight[:, None] + part.norm.bias[:, None]
    return normed, torch.cat((statistics[:, None], running), dim=1)


def _at(x: Tensor, index: Tensor) -> Tensor:
    """x [B, T, D] at index [B, N] -> [B, N, D]"""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
