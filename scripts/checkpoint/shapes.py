"""Names and shapes of a model's tensors, from its configs alone."""

from collections.abc import Iterator
from pathlib import Path

import torch
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.weights import read_config
from mimo_edge.scripts.checkpoint.presets import PRESETS
from mimo_edge.scripts.make_checkpoint import AUDIO_TOKENIZER, LANGUAGE_MODEL

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def real_shapes() -> Shapes:
    """Of the released 7B and its audio tokenizer."""
    preset = PRESETS["real"]
    return _shapes(
        LanguageModelConfig.from_dict(preset.language_model),
        AudioTokenizerConfig.from_dict(preset.audio_tokenizer),
    )


def shapes_of(folder: Path) -> Shapes:
    """Of a checkpoint pair's folder. Raises CheckpointError, ConfigError."""
    return _shapes(
        read_config(folder / LANGUAGE_MODEL, LanguageModelConfig.from_dict),
        read_config(folder / AUDIO_TOKENIZER, AudioTokenizerConfig.from_dict),
    )


def _shapes(lm: LanguageModelConfig, audio: AudioTokenizerConfig) -> Shapes:
    """By their names in the graphs, once for each graph that holds them."""
    with torch.device("meta"):
        model, tokenizer = LanguageModel(lm, 0), AudioTokenizer(audio)
    for owner, module in (
        ("patch_encoder", model.patch_encoder),
        ("backbone", model.backbone),
        ("patch_decoder", model.patch_decoder),
        ("encoder", tokenizer.encoder),
        ("quantizer", tokenizer.quantizer),
        ("decoder", tokenizer.decoder),
        ("quantizer", tokenizer.quantizer),
    ):
        for name, tensor in module.state_dict().items():
            yield f"{owner}.{name}", tuple(tensor.shape)
