"""The two models, put together from their pieces."""

import torch
from mimo_edge.mimo_ref.backbone import Backbone, KVCache
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.mel import log_mel
from mimo_edge.mimo_ref.patch_decoder import PatchDecoder
from mimo_edge.mimo_ref.patch_encoder import PatchEncoder
from mimo_edge.mimo_ref.rvq import ResidualVectorQuantizer
from mimo_edge.mimo_ref.tokenizer_decoder import TokenizerDecoder
from mimo_edge.mimo_ref.tokenizer_encoder import TokenizerEncoder
from torch import Tensor, nn

SEGMENT_MEL_FRAMES = 6000  # 60 s: longer audio is encoded in segments of this length
PIECE_CODE_FRAMES = 1500  # 60 s: longer answers are decoded in pieces of this length


class LanguageModel(nn.Module):
    """Patch encoder, backbone and patch decoder. `empty_id` is the text id of speech."""

    def __init__(self, config: LanguageModelConfig, empty_id: int) -> None:
        super().__init__()
        self.config, self.empty_id = config, empty_id
        self.patch_encoder = PatchEncoder(config, empty_id)
        self.backbone = Backbone(config)
        self.patch_decoder = PatchDecoder(config, self.patch_encoder.speech_embeddings)

    def pieces(self) -> list[nn.Module]:
        return [self.patch_encoder, self.backbone, self.patch_decoder]

    def split_grid(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Grid [B, 1 + K, P * G] -> text ids [B, P] and codes [B, P, K, G]."""
        patches = grid.unflatten(-1, (-1, self.config.group_size))  # [B, 1 + K, P, G]
        return patches[:, 0, :, 0], patches[:, 1:].transpose(1, 2)

    def forward(self, grid: Tensor, cache: KVCache, new: Tensor | None = None) -> Tensor:
        """Grid [B, 1 + K, P * G] -> states [B, P, D]; the cache grows by `new` [B] (default P)."""
        return self.backbone(self.patch_encoder(*self.split_grid(grid)), cache, new)


class AudioTokenizer(nn.Module):
    """wav -> log-mel -> states -> codes, and back."""

    def __init__(self, config: AudioTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TokenizerEncoder(config)
        self.quantizer = ResidualVectorQuantizer(config.codebook_size, config.d_model)
        self.decoder = TokenizerDecoder(config)

    def pieces(self) -> list[nn.Module]:
        return [self.encoder, self.quantizer, self.decoder]

    def encode_mel(
        self, mel: Tensor, n_q: int | None = None, upstream_batch: bool = False
    ) -> Tensor:
        """mel [T, n_mels] -> codes [n_q, T_code], in independent segments of 60 s.

        Upstream encodes all segments as one padded batch, which can change the last one if its
        length is odd; `upstream_batch` reproduces that, at the memory of the whole batch.
        """
        segments = mel.split(SEGMENT_MEL_FRAMES)
        if upstream_batch:
            lengths = torch.tensor([len(s) for s in segments])
            batch = nn.utils.rnn.pad_sequence(list(segments), batch_first=True)
            codes = self.quantizer.encode(self.encoder(batch, lengths, upstream_batch=True), n_q)
            counts = self.encoder.code_length(lengths).tolist()
            return torch.cat([c[:, :n] for c, n in zip(codes, counts, strict=True)], dim=-1)
        parts = []
        for segment in segments:
            states = self.encoder(segment[None], torch.tensor([len(segment)]))
            parts.append(self.quantizer.encode(states, n_q)[0])
        return torch.cat(parts, dim=-1)

    def encode(self, wav: Tensor, n_q: int | None = None) -> Tensor:
        """wav [N] at the model's rate -> codes [n_q, T]"""
        return self.encode_mel(log_mel(wav, self.config), n_q)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [n_q, T] -> wav [T * samples_per_frame], in independent pieces of 60 s."""
        parts = []
        for piece in codes.split(PIECE_CODE_FRAMES, dim=-1):
            lengths = torch.tensor([piece.shape[-1]])
            parts.append(self.decoder(self.quantizer.decode(piece[None]), lengths)[0])
        return torch.cat(parts)
