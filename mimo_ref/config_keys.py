"""Every key that a `config.json` may have, and what its value may be: one table for each model.

A key is one of three kinds:

used        a field of `mimo_edge.mimo_ref.config`: it decides what is computed
harmless    it decides nothing here: bookkeeping, training, the generation defaults of others
only        it would change what is computed, and one value alone is what this code computes

A key that is in no table is refused by name, for nobody knows what it would change.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mimo_edge.mimo_ref.errors import ConfigError

MOST = 1 << 24  # of any size; the largest real one is a vocabulary of 151,680
MOST_LAYERS = 1000  # each is built before the weights can contradict


@dataclass(frozen=True)
class Rule:
    """What the value of one key may be: `wanted` completes "it must be ..."."""

    kind: str
    wanted: str
    allows: Callable[[Any], bool]


def whole(least: int = 1, most: int = MOST, null: bool = False) -> Rule:
    """A whole number that is used."""

    def allows(value: Any) -> bool:
        return (null and value is None) or (type(value) is int and least <= value <= most)

    size = "a positive whole number" if least == 1 else f"a whole number, {least} or more"
    return Rule("used", f"{size}{', or null' if null else ''}, at most {most}", allows)


def real(zero: bool = False, most: float = 1e12, null: bool = False) -> Rule:
    """A finite number that is used."""

    def allows(value: Any) -> bool:
        if value is None or type(value) not in (int, float):
            return null and value is None
        # compared first: a whole number may be too large to become a float
        return 0 <= value <= most and (zero or value > 0) and math.isfinite(value)

    return Rule("used", "a number, 0 or more" if zero else "a positive number", allows)


def numbers(wanted: str) -> Rule:
    """Several whole numbers that are used; they are parsed, and checked, where they are read."""
    return Rule("used", wanted, lambda value: isinstance(value, str | int | list | tuple))


def flag(null: bool = False) -> Rule:
    """True or false, and used."""
    return Rule(
        "used", "true or false", lambda value: type(value) is bool or (null and value is None)
    )


def only(*values: Any) -> Rule:
    """One of `values`; null, too, is what the code computes."""

    def allows(value: Any) -> bool:
        alike = (v for v in values if isinstance(v, bool) == isinstance(value, bool))
        return value is None or any(value == v for v in alike)

    return Rule("only", " or ".join(repr(v) for v in values) or "null", allows)


def named(pattern: str, wanted: str) -> Rule:
    """A name that matches a pattern."""

    def allows(value: Any) -> bool:
        return value is None or (isinstance(value, str) and bool(re.fullmatch(pattern, value)))

    return Rule("only", wanted, allows)


HARMLESS = Rule("harmless", "anything", lambda _: True)
LAYERS = whole(most=MOST_LAYERS)
CHANNELS = whole(most=256)  # codebooks, and frames of a patch
PAIR = numbers("[left, right]")
CODES = numbers("numbers joined by -")


def _harmless(names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), HARMLESS)


# what transformers writes about a checkpoint, not about its numbers; `architectures` is read by
# `mimo_edge.mimo_ref.family`
BOOKKEEPING = {
    **_harmless("_name_or_path _commit_hash name_or_path auto_map transformers_version"),
    **_harmless("architectures torch_dtype dtype use_cache tokenizer_class unsloth_version"),
    **_harmless("_attn_implementation _attn_implementation_autoset attn_implementation"),
    **_harmless("return_dict output_hidden_states output_attentions torchscript use_bfloat16"),
    **_harmless("initializer_range id2label label2id finetuning_task problem_type"),
    **_harmless("task_specific_params prefix tf_legacy_loss gradient_checkpointing"),
    **_harmless("bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id"),
    # defaults of its own generate()
    **_harmless("max_length min_length do_sample early_stopping num_beams num_beam_groups"),
    **_harmless("diversity_penalty temperature top_k top_p typical_p repetition_penalty"),
    **_harmless("length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids"),
    **_harmless("num_return_sequences output_scores return_dict_in_generate suppress_tokens"),
    **_harmless("forced_bos_token_id forced_eos_token_id remove_invalid_values"),
    **_harmless("exponential_decay_length_penalty begin_suppress_tokens"),
    "is_encoder_decoder": only(False),
    "is_decoder": only(False),
    "add_cross_attention": only(False),
    "cross_attention_hidden_size": only(),
    "tie_encoder_decoder": only(False),
    "pruned_heads": only({}),
    "chunk_size_feed_forward": only(0),
    "quantization_config": only(),
    "compression_config": only(),
}

# ids that other tools look for in the config; ours come from the text tokenizer's own files, and an
# export holds the two together
TOKEN_IDS = {
    "empty_token_id": "<|empty|>",
    "empty_idx": "<|empty|>",
    "eot_idx": "<|eot|>",
    "sosp_idx": "<|sosp|>",
    "eosp_idx": "<|eosp|>",
    "sostm_idx": "<|sostm|>",
    "eostm_idx": "<|eostm|>",
    "speechlm_idx": "<|SpeechLM|>",
    "human_idx": "<|Human|>",
}


def _is_id(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value <= MOST)


def token_ids(raw: Mapping[str, Any]) -> dict[str, int]:
    """The ids that a checked config gives to special tokens: key of the config -> id."""
    flat = flattened(raw)
    return {name: flat[name] for name in TOKEN_IDS if flat.get(name) is not None}


LANGUAGE_MODEL: Mapping[str, Rule] = {
    **BOOKKEEPING,
    "model_type": named("qwen2|mimo.*", "'qwen2', or a name of the family"),
    # the backbone
    "vocab_size": whole(),
    "hidden_size": whole(),
    "num_hidden_layers": LAYERS,
    "num_attention_heads": whole(),
    "num_key_value_heads": whole(),
    "head_dim": whole(null=True),
    "intermediate_size": whole(),
    "rope_theta": real(),
    "rms_norm_eps": real(),
    "max_position_embeddings": whole(),
    "sliding_window": whole(null=True),
    "hidden_act": only("silu"),
    "attention_bias": only(True),
    "mlp_bias": only(False),
    "tie_word_embeddings": only(False),
    "partial_rotary_factor": only(1),
    "use_mrope": only(False),
    **_harmless("attention_dropout local_attn_dropout local_hidden_dropout hidden_dropout"),
    **_harmless("max_window_layers use_sliding_window"),
    # read by `rope_theta` and `check_layer_types` below
    **_harmless("rope_scaling rope_parameters layer_types"),
    # speech
    "speech_vocab_size": CODES,
    "speech_zeroemb_idx": CODES,
    "delay_pattern": CODES,
    "group_size": CHANNELS,
    "audio_channels": CHANNELS,
    "local_dim": whole(),
    "local_layers": LAYERS,
    "local_attn_heads": whole(),
    "local_ffn_dim": whole(),
    "local_rotary_base": real(null=True),
    "input_local_layers": whole(least=0, most=MOST_LAYERS),
    "input_local_dim": whole(least=0, null=True),
    "input_local_attn_heads": whole(null=True),
    "input_local_head_dim": whole(null=True),
    "input_local_intermediate_size": whole(null=True),
    "input_full_attention": flag(null=True),
    "add_input_local_transformer": only(True),
    "projection_layers": only(1),
    "mlp_layers": only(1),
    "add_post_norm": only(False),
    "tokenizer_version": only("v1"),
    "n_rvq": whole(null=True),
    "out_hidden_size": whole(null=True),
    "audio_config": HARMLESS,  # read by `flattened` below
    **_harmless("input_local_hidden_dropout input_local_attn_dropout"),
    # of training
    **_harmless("empty_loss_weight no_speech_loss no_text_loss add_speech_sosp_eosp"),
    **dict.fromkeys(TOKEN_IDS, Rule("used", "an id, or null", _is_id)),
}

AUDIO_TOKENIZER: Mapping[str, Rule] = {
    **BOOKKEEPING,
    "model_type": named("mimo.*", "'mimo_audio_tokenizer'"),
    "d_model": whole(),
    "encoder_layers": LAYERS,
    "encoder_attention_heads": whole(),
    "encoder_ffn_dim": whole(),
    "encoder_skip_layer_id": whole(least=0, most=MOST_LAYERS, null=True),
    "encoder_causal": flag(),
    "encoder_attn_window_size": PAIR,
    "decoder_layers": LAYERS,
    "decoder_attention_heads": whole(),
    "decoder_ffn_dim": whole(),
    "decoder_kernel_size": whole(most=64),
    "decoder_stride_size": whole(most=64),
    "decoder_causal": flag(),
    "decoder_attn_window_size": PAIR,
    "vocoder_dim": whole(),
    "vocoder_num_layers": LAYERS,
    "vocoder_attention_heads": whole(),
    "vocoder_intermediate_dim": whole(),
    "vocoder_attn_window_size": PAIR,
    "vocoder_padding": only("same"),
    "n_mels": whole(most=4096),
    "nfft": whole(most=8192),
    "hop_length": whole(most=8192),
    "window_size": whole(most=8192),
    "sampling_rate": whole(most=768_000),
    "fmin": real(zero=True),
    "fmax": real(null=True),
    "kernel_size": whole(most=64),
    "stride_size": whole(most=64),
    "avg_pooler": whole(most=64),
    "num_quantizers": CHANNELS,
    "codebook_size": numbers("a list of whole numbers"),
    "max_audio_seconds": whole(),
    "rope_theta": real(),
    "activation_function": only("gelu"),
    "ln_type": only("LayerNorm"),
    "rope_type": only("default"),
    "position_embedding_type": only("rope"),
    "scale_embedding": only(False),
    "tie_word_embeddings": HARMLESS,  # it has no words
    **_harmless("threshold_ema_dead_code attention_dropout dropout activation_dropout"),
    **_harmless("rope_scaling rope_parameters"),
}


def check_keys(raw: Mapping[str, Any], table: Mapping[str, Rule]) -> None:
    """Raises ConfigError for a key that is unknown, or whose value is not computed here."""
    unknown = sorted(str(name) for name in raw if name not in table)
    if unknown:
        raise ConfigError(
            f"{', '.join(unknown[:10])}{' ...' if len(unknown) > 10 else ''}: no released config "
            "has such a key, so what it changes is not known. Take it out if it changes nothing "
            "that the model computes; otherwise this checkpoint cannot be used."
        )
    for name, value in raw.items():
        rule = table[name]
        if rule.allows(value):
            continue
        if rule.kind == "used":
            raise ConfigError(f"{name} is {_short(value)}; it must be {rule.wanted}")
        raise ConfigError(
            f"{name} {_short(value)} is not supported, only {rule.wanted}: the model would compute "
            "something else. Take a checkpoint of MiMo-Audio or MiMo-V2.5-ASR."
        )


def flattened(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A language model's config with what `audio_config` holds beside the rest.

    Raises ConfigError if the two say different things.
    """
    flat = dict(raw)
    inner = raw.get("audio_config")
    if inner is None:
        return flat
    if not isinstance(inner, Mapping):
        raise ConfigError(f"audio_config is {_short(inner)}; it must hold settings")
    for name, value in inner.items():
        if name in raw and raw[name] is not None and value not in (None, raw[name]):
            raise ConfigError(
                f"{name} is {_short(raw[name])}, and in audio_config {_short(value)}: they must be "
                "equal. Take the config of the released checkpoint."
            )
        if flat.get(name) is None:
            flat[name] = value
    return flat


def rope_theta(raw: Mapping[str, Any]) -> float | None:
    """The base of the rotary embedding, from `rope_theta` or from newer `rope_parameters`.

    None where neither is given. Raises ConfigError for every type but the plain one.
    """
    theta = raw.get("rope_theta")
    for name in ("rope_scaling", "rope_parameters"):
        given = raw.get(name)
        if isinstance(given, Mapping) and isinstance(given.get("full_attention"), Mapping):
            others = [kind for kind in given if kind != "full_attention"]
            if others:
                raise ConfigError(f"{name} has settings for {others[0]}, which is not supported")
            given = given["full_attention"]
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise ConfigError(f"{name} is {_short(given)}; it must be null, or hold settings")
        theta = _plain_rope(given, name, theta)
    if theta is not None and not LANGUAGE_MODEL["rope_theta"].allows(theta):
        raise ConfigError(f"rope_theta is {_short(theta)}; it must be a positive number")
    return theta


def _plain_rope(given: Mapping[str, Any], name: str, theta: Any) -> Any:
    kinds = [given[key] for key in ("rope_type", "type") if given.get(key) is not None]
    scaled = [kind for kind in kinds if kind != "default"]
    if scaled:
        raise ConfigError(
            f"{name} has type {_short(scaled[0])}, which scales positions and is "
            "not supported, only 'default'. Take a checkpoint with plain positions."
        )
    other = [k for k in given if k not in ("rope_type", "type", "rope_theta")]
    other = [k for k in other if not (k == "partial_rotary_factor" and only(1).allows(given[k]))]
    if other:
        raise ConfigError(
            f"{name} has {other[0]} {_short(given[other[0]])}, which plain positions do not know. "
            "Take it out if it changes nothing that the model computes."
        )
    inner = given.get("rope_theta")
    if theta is not None and inner is not None and inner != theta:
        raise ConfigError(
            f"rope_theta is {_short(theta)}, and in {name} {_short(inner)}: they must be equal. "
            "Take the config of the released checkpoint."
        )
    return theta if inner is None else inner


def check_layer_types(raw: Mapping[str, Any]) -> None:
    """Newer transformers lists each layer's kind of attention. Raises ConfigError if one is not
    full, or if a window that counts is given beside."""
    kinds = raw.get("layer_types")
    if kinds is None:
        return
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ConfigError(
            f"layer_types is {_short(kinds)}: only 'full_attention' in every layer is supported. "
            "Take a checkpoint without sliding attention."
        )
    layers, window = raw.get("num_hidden_layers"), raw.get("sliding_window")
    if len(kinds) != layers:
        raise ConfigError(
            f"layer_types has {len(kinds)} entries for num_hidden_layers {layers}. Take the config "
            "of the released checkpoint."
        )
    context = raw.get("max_position_embeddings") or 0
    if isinstance(window, int) and isinstance(context, int) and window < context:
        raise ConfigError(
            f"layer_types says full attention, and sliding_window {window} would hide a part of "
            f"{context} positions. Set sliding_window to null, or take layer_types out."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
