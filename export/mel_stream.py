"""Piece `mel_stream`: new codes of streams -> mel frames, with the state of every row in place."""

import torch
from mimo_edge.export.piece import Piece, Port
from mimo_edge.export.tokenizer_decoder import dequantize
from mimo_edge.mimo_ref.mel_stream import STATISTICS, MelStream
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.runtime.bundle.stream_sizes import MOST_FRAMES, RING_FRAMES, WINDOW_FRAMES
from torch import Tensor, nn


class MelStreamGraph(nn.Module):
    def __init__(self, tokenizer: AudioTokenizer) -> None:
        super().__init__()
        self.quantizer = tokenizer.quantizer
        self.stream = MelStream(tokenizer.decoder, WINDOW_FRAMES, RING_FRAMES, MOST_FRAMES)

    def forward(
        self,
        codes: Tensor,
        lengths: Tensor,
        positions: Tensor,
        weights: Tensor,
        statistics: Tensor,
        last: Tensor,
        *caches: Tensor,
    ) -> tuple[Tensor, ...]:
        states = dequantize(self.quantizer, codes)
        outputs: tuple[Tensor, ...] = self.stream(
            states, lengths, positions, weights, statistics, last, *caches
        )
        return outputs


def piece(tokenizer: AudioTokenizer, dtype: torch.dtype) -> Piece:
    module, config = MelStreamGraph(tokenizer), tokenizer.config
    stream = module.stream
    cache = ("batch", stream.heads, stream.capacity, stream.head_dim)
    last = ("batch", stream.overlap, config.d_model)
    layers = range(config.decoder_layers)

    def ports(prefix: str) -> tuple[Port, ...]:
        names = [f"{prefix}_{kind}_{n}" for kind in ("keys", "values") for n in layers]
        return (
            Port(f"{prefix}_statistics", torch.float32, ("batch", STATISTICS)),
            Port(f"{prefix}_last", torch.float32, last),
            *(Port(name, dtype, cache) for name in names),
        )

    return Piece(
        name="mel_stream",
        module=module,
        inputs=(
            Port("codes", torch.int64, ("batch", "codebooks", "frames")),
            Port("lengths", torch.int64, ("batch",)),
            Port("positions", torch.int64, ("batch",)),
            Port("weights", torch.int64, ("batch",)),
            *ports("past"),
        ),
        outputs=(
            Port("mel", torch.float32, ("batch", "mel_frames", config.n_mels)),
            *ports("present"),
        ),
        owners={"quantizer": tokenizer.quantizer, "stream.decoder": tokenizer.decoder},
    )
