"""The other half of a decode that goes on: mel frames to pieces of sound, block by block.

The vocoder looks ahead, so its states near the end of what is known are provisional. A stream is
cut into blocks. A block is computed when `lookahead` more frames are known: its own frames, which
then sound and whose keys and values stay for later blocks, and those ahead, which are computed for
its sake alone and again when their own block comes. So what sounds depends on the blocks and not
on how frames arrive, each block costs the same, and several blocks can share one call.
"""

import torch
from mimo_edge.mimo_ref import attention, rotary
from mimo_edge.mimo_ref.tokenizer_decoder import TokenizerDecoder
from torch import Tensor, nn


class VocoderStream(nn.Module):
    """Runs a vocoder on tokens: frames of one or more blocks, each with those ahead of it."""

    def __init__(self, decoder: TokenizerDecoder, unlimited: int) -> None:
        """`unlimited`: frames to remember and to see where the config sets no limit (-1)."""
        super().__init__()
        config = decoder.config
        self.decoder = decoder
        left, right = (unlimited if w < 0 else w for w in config.vocoder_attn_window_size)
        self.left, self.right = left, right
        self.heads = config.vocoder_attention_heads
        self.head_dim = config.vocoder_dim // self.heads

    def forward(
        self,
        mel: Tensor,
        positions: Tensor,
        blocks: Tensor,
        until: Tensor,
        past_positions: Tensor,
        kept: Tensor,
        *caches: Tensor,
    ) -> tuple[Tensor, ...]:
        """Tokens mel [B, Q, n_mels] at positions [B, Q] -> windowed frames [B, Q, n_fft] float32,
        what a window weighs [n_fft], its square, and the new caches.

        A token belongs to one of the `blocks` [B, Q] and is seen by the blocks from there to
        `until` [B, Q]: a token that is only looked ahead at by its own alone. caches (keys of every
        layer, then values, each [B, H, C, D]) hold frames at past_positions [B, C], far below zero
        where there is none; the new ones take those at `kept` [B, C] of the C + Q.
        """
        vocoder = self.decoder.vocoder
        layers = len(vocoder.layers)
        x = vocoder.embeddings(mel.to(vocoder.layer_norm.weight.dtype))
        key = torch.cat((past_positions, positions), dim=1)  # [B, C + Q]
        ahead = key[:, None] - positions[..., None]  # [B, Q, C + Q]
        query = blocks[..., None]
        own = (blocks[:, None] <= query) & (query <= until[:, None])  # [B, Q, Q]
        before = torch.ones_like(past_positions, dtype=torch.bool)[:, None] & (query >= 0)
        mask = torch.cat((before, own), dim=-1) & (ahead >= -self.left) & (ahead <= self.right)
        mask = mask[:, None]
        tables = rotary.wrapped_tables(positions, self.head_dim, vocoder.config.rope_theta, x.dtype)
        index = kept[:, None, :, None].expand(-1, self.heads, -1, self.head_dim)
        updated = list(caches)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = (
                torch.cat((cache, new), dim=2)
                for cache, new in ((caches[layer], k), (caches[layers + layer], v))
            )
            updated[layer], updated[layers + layer] = keys.gather(2, index), values.gather(2, index)
            return attention.attention(q, keys, values, mask)

        for number, part in enumerate(vocoder.layers):
            x = part(x, number, lambda y: rotary.rotate(y, *tables), attend)
        istft = vocoder.head.istft
        window = istft.window.float()
        frames = istft.to_frames(*vocoder.head.spectrum(vocoder.layer_norm(x))) * window
        return (frames, window.square(), *updated)
