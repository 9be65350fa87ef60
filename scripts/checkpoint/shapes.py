"""Names, shapes and sizes of a model, from its configs alone."""

from collections.abc import Iterator
from pathlib import Path

from mimo_edge.engines.plan.workload import Sizes
from mimo_edge.export.shapes import graph_tensors
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.weights import read_config
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.scripts.checkpoint.pair_folder import AUDIO_TOKENIZER, LANGUAGE_MODEL
from mimo_edge.scripts.checkpoint.presets import PRESETS

Shapes = Iterator[tuple[str, tuple[int, ...]]]
Configs = tuple[LanguageModelConfig, AudioTokenizerConfig]


def preset_configs(name: str) -> Configs:
    """Of a random checkpoint; `real` has the sizes of the released 7B."""
    preset = PRESETS[name]
    return (
        LanguageModelConfig.from_dict(preset.language_model),
        AudioTokenizerConfig.from_dict(preset.audio_tokenizer),
    )


def configs_of(folder: Path, audio_tokenizer: Path | None = None) -> Configs:
    """Of a checkpoint pair's folder, or of two folders. Raises CheckpointError, ConfigError."""
    language_model = folder / LANGUAGE_MODEL
    if audio_tokenizer is None and not language_model.is_dir() and folder.is_dir():
        raise InputError(
            f"{folder} has no {LANGUAGE_MODEL}/ and {AUDIO_TOKENIZER}/. Give the two folders: "
            "--checkpoint LM --audio-tokenizer DIR."
        )
    return (
        read_config(
            language_model if audio_tokenizer is None else folder, LanguageModelConfig.from_dict
        ),
        read_config(audio_tokenizer or folder / AUDIO_TOKENIZER, AudioTokenizerConfig.from_dict),
    )


def real_shapes() -> Shapes:
    """Of the released 7B and its audio tokenizer."""
    return graph_tensors(*preset_configs("real"))


def shapes_of(folder: Path) -> Shapes:
    """Of a checkpoint pair's folder. Raises CheckpointError, ConfigError."""
    return graph_tensors(*configs_of(folder))


def sizes_of(configs: Configs, cache_bytes: int) -> Sizes:
    """What a plan needs beside names and shapes; `cache_bytes` of a number in the cache."""
    lm, audio = configs
    mel_per_frame = audio.stride_size * audio.avg_pooler
    return Sizes(
        group_size=lm.group_size,
        sub_steps=lm.group_size + max(lm.delay_pattern),
        context=lm.max_position_embeddings,
        vocab_size=lm.vocab_size,
        hidden_size=lm.hidden_size,
        query_width=lm.num_attention_heads * lm.head_dim,
        kv_width=lm.num_key_value_heads * lm.head_dim,
        cache_bytes=cache_bytes,
        frame_seconds=mel_per_frame * audio.hop_length / audio.sampling_rate,
    )
