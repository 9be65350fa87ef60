"""Piece `patch_decoder`: a backbone state -> the codes of one patch, sampling included.

The sub-steps are unrolled; randomness comes in as one uniform number per code.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mimo_edge.export.piece import Piece, Port
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.mimo_ref.sampling import sample
from torch import Tensor, nn


class PatchDecoderGraph(nn.Module):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.patch_decoder = model.patch_decoder

    def forward(
        self, hidden: Tensor, uniforms: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor
    ) -> Tensor:
        config = self.patch_decoder.config

        widest = max(config.speech_vocab_size)

        def choose(scores: list[Tensor], draws: list[tuple[int, int]]) -> Sequence[Tensor]:
            """All codes of a sub-step in one go: rows padded to the widest vocabulary."""
            rows = [F.pad(s.float(), (0, widest - s.shape[-1]), value=-math.inf) for s in scores]
            ids = torch.arange(widest)
            removed = [ids == config.speech_zeroemb_idx[k] for k, _ in draws]
            n, batch = len(draws), hidden.shape[0]
            chosen = sample(
                torch.cat(rows),  # [n * B, V]
                torch.cat([uniforms[:, g, k] for k, g in draws]),
                temperature.repeat(n),
                top_k.repeat(n),
                top_p.repeat(n),
                torch.stack(removed)[:, None].expand(n, batch, -1).flatten(0, 1),
            )
            return list(chosen.reshape(n, batch).unbind())

        local_hidden = self.patch_decoder.hidden_states_downcast(hidden)
        return self.patch_decoder(local_hidden, choose)


def piece(model: LanguageModel, dtype: torch.dtype) -> Piece:
    config = model.config
    patch = ("batch", config.group_size, config.audio_channels)
    return Piece(
        name="patch_decoder",
        module=PatchDecoderGraph(model),
        inputs=(
            Port("hidden", dtype, ("batch", config.hidden_size)),
            Port("uniforms", torch.float32, patch),
            Port("temperature", torch.float32, ("batch",)),
            Port("top_k", torch.int64, ("batch",)),
            Port("top_p", torch.float32, ("batch",)),
        ),
        outputs=(Port("codes", torch.int64, patch),),
        owners={"patch_decoder": model.patch_decoder},
    )
