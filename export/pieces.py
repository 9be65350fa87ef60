"""The pieces of a model by their names, built from configs alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from mimo_edge.export import (
    backbone,
    mel,
    mel_stream,
    patch_decoder,
    patch_encoder,
    tokenizer_decoder,
    tokenizer_encoder,
    vocoder_stream,
)
from mimo_edge.export.piece import Piece, cast
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.runtime.bundle.family import SPEECH_PIECES
from mimo_edge.runtime.bundle.manifest import PIECES


@dataclass(frozen=True)
class Pieces:
    """All that a traced piece depends on: it can be sent to a process that traces."""

    language_model: LanguageModelConfig
    audio_tokenizer: AudioTokenizerConfig
    empty_id: int  # the text id that means "speech here"
    dtype: torch.dtype

    def names(self, speech: bool) -> list[str]:
        """Those of a bundle in its order, with those that make `speech` or without."""
        return [name for name in PIECES if speech or name not in SPEECH_PIECES]

    def build(self, name: str) -> Piece:
        """One piece; to be called where tensors are fake."""
        builders: dict[str, Callable[[], Piece]] = {
            "mel": lambda: mel.piece(self.audio_tokenizer),
            "tokenizer_encoder": lambda: tokenizer_encoder.piece(self._audio()),
            "patch_encoder": lambda: patch_encoder.piece(self._lm(), self.dtype),
            "backbone": lambda: backbone.piece(self._lm(), self.dtype),
            "patch_decoder": lambda: patch_decoder.piece(self._lm(), self.dtype),
            "tokenizer_decoder": lambda: tokenizer_decoder.piece(self._audio()),
            "mel_stream": lambda: mel_stream.piece(self._audio(), self.dtype),
            "vocoder_stream": lambda: vocoder_stream.piece(self._audio(), self.dtype),
        }
        return builders[name]()

    def _lm(self) -> LanguageModel:
        return cast(LanguageModel(self.language_model, self.empty_id), self.dtype)

    def _audio(self) -> AudioTokenizer:
        tokenizer = AudioTokenizer(self.audio_tokenizer)
        for piece in (tokenizer.encoder, tokenizer.decoder):
            cast(piece, self.dtype)  # the quantiser and the window stay exact in every precision
        return tokenizer
