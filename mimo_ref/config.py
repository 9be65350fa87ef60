"""Sizes of the two models, read from the `config.json` files of the released checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mimo_edge.mimo_ref.errors import ConfigError


@dataclass(frozen=True)
class Qwen2Config:
    """Sizes of one Qwen2 stack; the language model has three of them."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    rope_theta: float
    norm_eps: float
    window: int | None = None  # keys further back than this are hidden


@dataclass(frozen=True)
class LanguageModelConfig:
    """The language model: backbone, patch encoder and patch decoder.

    Field names are those of `config.json`, so that they can be looked up there; the strings
    "a-b-c" of the file are tuples here, one entry per codebook.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    speech_vocab_size: tuple[int, ...]
    speech_zeroemb_idx: tuple[int, ...]
    local_dim: int
    local_layers: int
    local_attn_heads: int
    local_ffn_dim: int
    input_local_layers: int
    head_dim: int = 128
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 8192
    sliding_window: int | None = 4096
    group_size: int = 4
    audio_channels: int = 8
    delay_pattern: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    input_local_dim: int = 0  # 0: as local_dim
    input_full_attention: bool = False  # upstream's None, too, means causal

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "LanguageModelConfig":
        """Parse a `config.json`. Raises ConfigError for what this code does not compute."""
        values = _known_fields(cls, raw, "language model")
        _refuse(raw, hidden_act="silu", rope_scaling=None)
        channels = int(values.setdefault("audio_channels", 8))
        for name in ("speech_vocab_size", "speech_zeroemb_idx", "delay_pattern"):
            values[name] = _per_channel(values.get(name, cls.delay_pattern), channels, name)
        values["input_local_dim"] = values.get("input_local_dim") or values["local_dim"]
        values["input_full_attention"] = bool(values.get("input_full_attention"))
        config = cls(**values)
        config._check()
        return config

    def _check(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        for name in ("local_dim", "input_local_dim"):
            if getattr(self, name) % (2 * self.local_attn_heads):
                raise ConfigError(
                    f"{name} {getattr(self, name)} does not give an even head size for "
                    f"local_attn_heads {self.local_attn_heads}"
                )
        for empty, vocab in zip(self.speech_zeroemb_idx, self.speech_vocab_size, strict=True):
            if not 0 <= empty < vocab:
                raise ConfigError(f"speech_zeroemb_idx {empty} is outside its vocabulary {vocab}")
        longest = self.group_size + max(self.delay_pattern)
        if self.sliding_window is not None and self.sliding_window < longest:
            raise ConfigError(f"sliding_window {self.sliding_window} is below {longest} sub-steps")

    @property
    def backbone(self) -> Qwen2Config:
        return Qwen2Config(
            dim=self.hidden_size,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            ffn_dim=self.intermediate_size,
            rope_theta=self.rope_theta,
            norm_eps=self.rms_norm_eps,
            window=self.sliding_window,
        )

    @property
    def patch_encoder(self) -> Qwen2Config:
        ffn_dim = 4 * self.input_local_dim
        return self._local(self.input_local_dim, self.input_local_layers, ffn_dim)

    @property
    def patch_decoder(self) -> Qwen2Config:
        return self._local(self.local_dim, self.local_layers, self.local_ffn_dim)

    def _local(self, dim: int, layers: int, ffn_dim: int) -> Qwen2Config:
        """A local stack: no grouped heads, theta and eps of the backbone."""
        heads = self.local_attn_heads
        return Qwen2Config(
            dim, layers, heads, heads, dim // heads, ffn_dim, self.rope_theta, self.rms_norm_eps
        )


@dataclass(frozen=True)
class AudioTokenizerConfig:
    """The audio tokenizer. Field names are those of `config.json`."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    vocoder_dim: int
    vocoder_num_layers: int
    vocoder_attention_heads: int
    vocoder_intermediate_dim: int
    n_mels: int
    nfft: int
    hop_length: int
    window_size: int
    num_quantizers: int
    codebook_size: tuple[int, ...]
    sampling_rate: int = 24000
    fmin: float = 0.0
    fmax: float | None = None
    kernel_size: int = 3
    stride_size: int = 2
    avg_pooler: int = 2
    encoder_skip_layer_id: int | None = None
    encoder_causal: bool = False
    encoder_attn_window_size: tuple[int, int] = (-1, -1)
    decoder_kernel_size: int = 3
    decoder_stride_size: int = 2
    decoder_causal: bool = True
    decoder_attn_window_size: tuple[int, int] = (-1, -1)
    vocoder_attn_window_size: tuple[int, int] = (40, 10)
    rope_theta: float = 10000.0
    max_audio_seconds: int = 1800

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "AudioTokenizerConfig":
        """Parse a `config.json`. Raises ConfigError for what this code does not compute."""
        values = _known_fields(cls, raw, "audio tokenizer")
        _refuse(
            raw,
            activation_function="gelu",
            ln_type="LayerNorm",
            rope_type="default",
            position_embedding_type="rope",
            vocoder_padding="same",
        )
        for name in ("encoder", "decoder", "vocoder"):
            window = f"{name}_attn_window_size"
            if window in values:
                values[window] = _whole_numbers(values[window], window)
                if len(values[window]) != 2:
                    raise ConfigError(f"{window} is {values[window]}; it must be [left, right]")
        sizes = _whole_numbers(values["codebook_size"], "codebook_size")
        if min(sizes) < 1:
            raise ConfigError(f"codebook_size is {sizes}; every codebook must have entries")
        # a short list means that its last entry repeats
        sizes += (sizes[-1],) * (values["num_quantizers"] - len(sizes))
        values["codebook_size"] = sizes[: values["num_quantizers"]]
        config = cls(**values)
        if config.avg_pooler < 2:
            raise ConfigError("avg_pooler 1 (no down-sampling) is not supported")
        return config

    @property
    def samples_per_frame(self) -> int:
        """Audio samples that one code frame becomes."""
        return self.avg_pooler * self.decoder_stride_size * self.hop_length


def _known_fields(cls: type, raw: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"it holds a {type(raw).__name__}, not the settings of a {what}")
    known = {f.name: f for f in fields(cls)}
    required = [name for name in known if not hasattr(cls, name)]
    missing = [name for name in required if raw.get(name) is None]
    if missing:
        raise ConfigError(
            f"not the config of a MiMo-Audio {what}: missing {', '.join(missing[:10])}"
            f"{' ...' if len(missing) > 10 else ''}. Give the folder of the released {what}."
        )
    nullable = ("sliding_window", "fmax", "encoder_skip_layer_id")
    values = {k: v for k, v in raw.items() if k in known and (v is not None or k in nullable)}
    may_be_zero = ("fmin", "input_local_dim", "encoder_skip_layer_id", "input_local_layers")
    for name, value in values.items():
        kind = known[name].type
        if kind not in (int, float) and "None" not in str(kind):
            continue  # bools, and lists that are parsed later
        whole = kind in (int, int | None)
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if value is not None and (
            not number or value < 0 or (not value and name not in may_be_zero)
        ):
            wanted = "a positive whole number" if whole else "a positive number"
            raise ConfigError(f"{name} is {value!r}; it must be {wanted}")
    return values


def _refuse(raw: Mapping[str, Any], **expected: Any) -> None:
    for name, value in expected.items():
        if raw.get(name, value) not in (value, None):
            raise ConfigError(f"{name} {raw[name]!r} is not supported, only {value!r}")


def _whole_numbers(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not value or any(type(v) is not int for v in value):
        raise ConfigError(f"{name} is {value!r}; it must be a list of whole numbers")
    return tuple(value)


def _per_channel(value: Any, channels: int, name: str) -> tuple[int, ...]:
    """ "a-b-c", one number for all channels, or already a sequence."""
    if isinstance(value, str) and "-" in value:
        value = value.split("-")
    elif isinstance(value, int | str):
        value = [value] * channels
    try:
        result = tuple(int(v) for v in value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is {value!r}; it must be numbers joined by -") from error
    if len(result) != channels:
        raise ConfigError(f"{name} has {len(result)} entries for {channels} audio channels")
    return result
