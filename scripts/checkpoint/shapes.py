"""Names and shapes of a model's tensors, from its configs alone."""

from collections.abc import Iterator
from pathlib import Path

from mimo_edge.export.shapes import graph_tensors
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.weights import read_config
from mimo_edge.scripts.checkpoint.presets import PRESETS
from mimo_edge.scripts.make_checkpoint import AUDIO_TOKENIZER, LANGUAGE_MODEL

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def real_shapes() -> Shapes:
    """Of the released 7B and its audio tokenizer."""
    preset = PRESETS["real"]
    return graph_tensors(
        LanguageModelConfig.from_dict(preset.language_model),
        AudioTokenizerConfig.from_dict(preset.audio_tokenizer),
    )


def shapes_of(folder: Path) -> Shapes:
    """Of a checkpoint pair's folder. Raises CheckpointError, ConfigError."""
    return graph_tensors(
        read_config(folder / LANGUAGE_MODEL, LanguageModelConfig.from_dict),
        read_config(folder / AUDIO_TOKENIZER, AudioTokenizerConfig.from_dict),
    )
