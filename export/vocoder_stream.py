"""Piece `vocoder_stream`: mel frames of streams -> windowed frames of sound, block by block."""

import torch
from mimo_edge.export.piece import Piece, Port
from mimo_edge.export.tokenizer_decoder import MatrixInverse
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.mimo_ref.vocoder_stream import VocoderStream
from mimo_edge.runtime.bundle.stream_sizes import UNLIMITED
from torch import Tensor, nn


class VocoderStreamGraph(nn.Module):
    def __init__(self, tokenizer: AudioTokenizer) -> None:
        super().__init__()
        self.stream = VocoderStream(tokenizer.decoder, UNLIMITED)
        self.inverse = MatrixInverse(tokenizer)

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
        outputs: tuple[Tensor, ...] = self.stream(
            mel, positions, blocks, until, past_positions, kept, *caches
        )
        return outputs


def piece(tokenizer: AudioTokenizer, dtype: torch.dtype) -> Piece:
    module, config = VocoderStreamGraph(tokenizer), tokenizer.config
    stream = module.stream
    cache = ("batch", stream.heads, stream.left, stream.head_dim)
    layers = range(config.vocoder_num_layers)

    def ports(prefix: str) -> tuple[Port, ...]:
        names = [f"{prefix}_{kind}_{n}" for kind in ("keys", "values") for n in layers]
        return tuple(Port(name, dtype, cache) for name in names)

    def of_tokens(name: str) -> Port:
        return Port(name, torch.int64, ("batch", "tokens"))

    def of_past(name: str) -> Port:
        return Port(name, torch.int64, ("batch", stream.left))

    return Piece(
        name="vocoder_stream",
        module=module,
        inputs=(
            Port("mel", torch.float32, ("batch", "tokens", config.n_mels)),
            *map(of_tokens, ("positions", "blocks", "until")),
            *map(of_past, ("past_positions", "kept")),
            *ports("past"),
        ),
        outputs=(
            Port("wav_frames", torch.float32, ("batch", "tokens", config.nfft)),
            Port("weight", torch.float32, (config.nfft,)),
            *ports("present"),
        ),
        owners={"stream.decoder": tokenizer.decoder},
        constants=MatrixInverse.constants(config.nfft),
    )
