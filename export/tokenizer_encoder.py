"""Piece `tokenizer_encoder`: log-mel -> codes of every codebook, with the RVQ in the graph."""

import torch
from mimo_edge.export.piece import Piece, Port
from mimo_edge.mimo_ref.model import AudioTokenizer
from torch import Tensor, nn


class TokenizerEncoderGraph(nn.Module):
    def __init__(self, tokenizer: AudioTokenizer) -> None:
        super().__init__()
        self.encoder, self.quantizer = tokenizer.encoder, tokenizer.quantizer

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        return self.quantizer.encode(self.encoder(mel, lengths))


def piece(tokenizer: AudioTokenizer) -> Piece:
    config = tokenizer.config
    return Piece(
        name="tokenizer_encoder",
        module=TokenizerEncoderGraph(tokenizer),
        inputs=(
            Port("mel", torch.float32, ("batch", "mel_frames", config.n_mels)),
            Port("lengths", torch.int64, ("batch",)),
        ),
        outputs=(Port("codes", torch.int64, ("batch", config.num_quantizers, "frames")),),
        owners={"encoder": tokenizer.encoder, "quantizer": tokenizer.quantizer},
    )
