"""Piece `patch_encoder`: text ids and codes -> backbone input."""

import torch
from mimo_edge.export.piece import Piece, Port
from mimo_edge.mimo_ref.model import LanguageModel


class PatchEncoderGraph(torch.nn.Module):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.patch_encoder = model.patch_encoder

    def forward(self, text_ids: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return self.patch_encoder(text_ids, codes)


def piece(model: LanguageModel, dtype: torch.dtype) -> Piece:
    config = model.config
    codes = ("batch", "patches", config.audio_channels, config.group_size)
    return Piece(
        name="patch_encoder",
        module=PatchEncoderGraph(model),
        inputs=(
            Port("text_ids", torch.int64, ("batch", "patches")),
            Port("codes", torch.int64, codes),
        ),
        outputs=(Port("embeddings", dtype, ("batch", "patches", config.hidden_size)),),
        owners={"patch_encoder": model.patch_encoder},
    )
