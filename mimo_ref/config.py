"""Sizes of the two models, read from the `config.json` files of the released checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mimo_edge.mimo_ref.config_keys import (
    AUDIO_TOKENIZER,
    LANGUAGE_MODEL,
    MOST,
    check_keys,
    check_layer_types,
    flattened,
    rope_theta,
)
from mimo_edge.mimo_ref.errors import ConfigError
from mimo_edge.mimo_ref.family import MIMO_AUDIO, architecture_of

MOST_DELAY = 256  # sub-steps that a codebook may come later


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
    head_dim: int = 0  # 0: hidden_size / num_attention_heads, as transformers
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 8192
    sliding_window: int | None = 4096
    group_size: int = 4
    audio_channels: int = 8
    delay_pattern: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    input_local_dim: int = 0  # 0: as local_dim
    input_full_attention: bool = False  # upstream's None, too, means causal
    # of MiMo-V2.5-ASR; 0: what MiMo-Audio computes, see `from_dict`
    local_rotary_base: float = 0.0
    input_local_attn_heads: int = 0
    input_local_head_dim: int = 0
    input_local_intermediate_size: int = 0
    architecture: str = MIMO_AUDIO

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "LanguageModelConfig":
        """Parse a `config.json`. Raises ConfigError for what this code does not compute."""
        _check_kind(cls, raw, "language model")
        raw = flattened(raw)
        architecture = architecture_of(raw)
        check_keys(raw, LANGUAGE_MODEL)
        check_layer_types(raw)
        values = _given(cls, raw) | {"architecture": architecture}
        if (theta := rope_theta(raw)) is not None:
            values["rope_theta"] = theta
        channels = values.setdefault("audio_channels", cls.audio_channels)
        for name in ("speech_vocab_size", "speech_zeroemb_idx", "delay_pattern"):
            values[name] = _per_channel(values.get(name, cls.delay_pattern), channels, name)
        if not values.get("head_dim"):
            values["head_dim"] = _share(values, "hidden_size", "num_attention_heads", "head_dim")
        values["input_local_dim"] = values.get("input_local_dim") or values["local_dim"]
        values["input_full_attention"] = bool(values.get("input_full_attention"))
        for name, usual in _local_sizes(values, architecture).items():
            if architecture == MIMO_AUDIO and values.get(name, usual) != usual:
                raise ConfigError(
                    f"{name} is {values[name]}, and MiMo-Audio computes {usual}. Take the config "
                    "of the released checkpoint."
                )
            values[name] = values.get(name) or usual
        config = cls(**values)
        config._check(raw)
        return config

    def _check(self, raw: Mapping[str, Any]) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2 or self.input_local_head_dim % 2:
            raise ConfigError(
                f"head_dim {self.head_dim} and input_local_head_dim {self.input_local_head_dim} "
                "must be even: half of a head is rotated against the other"
            )
        if self.local_dim % (2 * self.local_attn_heads):
            raise ConfigError(
                f"local_dim {self.local_dim} does not give an even head size for "
                f"local_attn_heads {self.local_attn_heads}"
            )
        for empty, vocab in zip(self.speech_zeroemb_idx, self.speech_vocab_size, strict=True):
            if not 0 <= empty < vocab <= MOST:
                raise ConfigError(f"speech_zeroemb_idx {empty} is outside its vocabulary {vocab}")
        if not 0 <= min(self.delay_pattern) <= max(self.delay_pattern) < MOST_DELAY:
            raise ConfigError(
                f"delay_pattern {self.delay_pattern} must be numbers from 0 to {MOST_DELAY - 1}"
            )
        longest = self.group_size + max(self.delay_pattern)
        if self.sliding_window is not None and self.sliding_window < longest:
            raise ConfigError(f"sliding_window {self.sliding_window} is below {longest} sub-steps")
        if raw.get("out_hidden_size") not in (None, self.hidden_size):
            raise ConfigError(
                f"out_hidden_size {raw['out_hidden_size']} is not hidden_size {self.hidden_size}: "
                "a patch must become one position"
            )
        if (raw.get("n_rvq") or self.audio_channels) < self.audio_channels:
            raise ConfigError(
                f"n_rvq {raw['n_rvq']} is below the {self.audio_channels} audio_channels"
            )

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
        return self._local(
            self.input_local_dim,
            self.input_local_layers,
            self.input_local_attn_heads,
            self.input_local_head_dim,
            self.input_local_intermediate_size,
        )

    @property
    def patch_decoder(self) -> Qwen2Config:
        heads = self.local_attn_heads
        head_dim = self.local_dim // heads
        return self._local(self.local_dim, self.local_layers, heads, head_dim, self.local_ffn_dim)

    def _local(self, dim: int, layers: int, heads: int, head_dim: int, ffn: int) -> Qwen2Config:
        """A local stack: no grouped heads, eps of the backbone."""
        return Qwen2Config(
            dim, layers, heads, heads, head_dim, ffn, self.local_rotary_base, self.rms_norm_eps
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
        _check_kind(cls, raw, "audio tokenizer")
        check_keys(raw, AUDIO_TOKENIZER)
        values = _given(cls, raw)
        if (theta := rope_theta(raw)) is not None:
            values["rope_theta"] = theta
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
        config._check()
        return config

    def _check(self) -> None:
        if self.avg_pooler < 2:
            raise ConfigError("avg_pooler 1 (no down-sampling) is not supported")
        if self.window_size > self.nfft:
            raise ConfigError(f"window_size {self.window_size} is above nfft {self.nfft}")
        if self.hop_length > self.window_size:
            raise ConfigError(
                f"hop_length {self.hop_length} is above window_size {self.window_size}: samples "
                "between two windows would be lost"
            )
        if self.nfft % 2:
            raise ConfigError(f"nfft {self.nfft} must be even")
        top = self.sampling_rate / 2 if self.fmax is None else self.fmax
        if not self.fmin < top <= self.sampling_rate / 2:
            raise ConfigError(
                f"fmin {self.fmin:g} and fmax {top:g} must be in order, and at most half of "
                f"sampling_rate {self.sampling_rate}"
            )
        for name, dim, heads in (
            ("d_model", self.d_model, self.encoder_attention_heads),
            ("d_model", self.d_model, self.decoder_attention_heads),
            ("vocoder_dim", self.vocoder_dim, self.vocoder_attention_heads),
        ):
            if dim % (2 * heads):
                raise ConfigError(
                    f"{name} {dim} does not give an even head size for {heads} attention heads"
                )
        if (self.encoder_skip_layer_id or 0) > self.encoder_layers:
            raise ConfigError(
                f"encoder_skip_layer_id {self.encoder_skip_layer_id} is above encoder_layers "
                f"{self.encoder_layers}"
            )

    @property
    def samples_per_frame(self) -> int:
        """Audio samples that one code frame becomes."""
        return self.avg_pooler * self.decoder_stride_size * self.hop_length


def _check_kind(cls: type, raw: Any, what: str) -> None:
    """Refuse what is not the config of a `what` at all."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"it holds a {type(raw).__name__}, not the settings of a {what}")
    required = [f.name for f in fields(cls) if not hasattr(cls, f.name)]
    inner = raw.get("audio_config")
    given = {**(inner if isinstance(inner, Mapping) else {}), **raw}
    missing = [name for name in required if given.get(name) is None]
    if missing:
        raise ConfigError(
            f"not the config of a MiMo-Audio {what}: missing {', '.join(missing[:10])}"
            f"{' ...' if len(missing) > 10 else ''}. Give the folder of the released {what}."
        )


def _given(cls: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    """What the config says of the fields of `cls`; null is a value where it means something."""
    nullable = ("sliding_window", "fmax", "encoder_skip_layer_id")
    known = {f.name for f in fields(cls)}
    return {k: v for k, v in raw.items() if k in known and (v is not None or k in nullable)}


def _local_sizes(values: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """What MiMo-Audio computes where MiMo-V2.5-ASR's config has keys of its own."""
    heads = values["local_attn_heads"]
    if architecture != MIMO_AUDIO:
        heads = values.get("input_local_attn_heads") or heads
    sizes = {
        "local_rotary_base": values.get("rope_theta", LanguageModelConfig.rope_theta),
        "input_local_attn_heads": heads,
        "input_local_intermediate_size": 4 * values["input_local_dim"],
    }
    if architecture == MIMO_AUDIO or not values.get("input_local_head_dim"):
        shared = {**values, "heads": heads}
        name = "input_local_head_dim"
        sizes[name] = _share(shared, "input_local_dim", "heads", name)
    return sizes


def _share(values: Mapping[str, Any], whole: str, parts: str, name: str) -> int:
    """The size of a head where the config does not say it."""
    if values[whole] % values[parts]:
        raise ConfigError(
            f"{whole} {values[whole]} is not a multiple of {values[parts]} heads; say {name}"
        )
    return int(values[whole] // values[parts])


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
    # int() alone would take 1.9 for 1, true for 1, and numbers in other writing
    if not all(
        type(v) is int or (isinstance(v, str) and v.isascii() and v.isdigit() and len(v) < 10)
        for v in value
    ):
        raise ConfigError(f"{name} is {value!r:.80}; it must be numbers joined by -")
    result = tuple(map(int, value))
    if len(result) != channels:
        raise ConfigError(f"{name} has {len(result)} entries for {channels} audio channels")
    return result
