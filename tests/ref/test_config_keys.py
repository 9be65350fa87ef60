"""Every key of a config.json is used, known to be harmless, or refused by name."""

import codecs
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.config_keys import AUDIO_TOKENIZER, LANGUAGE_MODEL
from mimo_edge.mimo_ref.errors import CheckpointError, ConfigError
from mimo_edge.mimo_ref.family import MIMO_AUDIO, MIMO_V25_ASR
from mimo_edge.mimo_ref.tensor_files import read_json
from mimo_edge.scripts.checkpoint.presets import PRESETS

LM, AUDIO = PRESETS["tiny"].language_model, PRESETS["tiny"].audio_tokenizer
ASR = PRESETS["tiny-asr"].language_model
FULL, SLIDING = "full_attention", "sliding_attention"


def parsed(**changes: Any) -> LanguageModelConfig:
    return LanguageModelConfig.from_dict(LM | changes)


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


@pytest.mark.parametrize(
    ("config", "table"),
    [(LanguageModelConfig, LANGUAGE_MODEL), (AudioTokenizerConfig, AUDIO_TOKENIZER)],
)
def test_the_table_is_whole(config: type, table: dict[str, Any]) -> None:
    """What is computed with is in the table as used."""
    for field in fields(config):
        if field.name != "architecture":
            assert table[field.name].kind == "used", field.name


@pytest.mark.parametrize("name", PRESETS)
def test_every_key_of_the_released_configs_is_known(name: str) -> None:
    LanguageModelConfig.from_dict(PRESETS[name].language_model)
    AudioTokenizerConfig.from_dict(PRESETS[name].audio_tokenizer)


CHANGES_NUMBERS: dict[str, Any] = {
    "attention_bias": False,
    "tie_word_embeddings": True,
    "partial_rotary_factor": 0.334,
    "projection_layers": 2,
    "mlp_layers": 2,
    "add_post_norm": True,
    "add_input_local_transformer": False,
    "quantization_config": {"bits": 4},
    "hidden_act": "gelu",
    "model_type": "qwen3",
    "tokenizer_version": "v2",
    "is_encoder_decoder": True,
    "pruned_heads": {"0": [1]},
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},  # and rope_theta says 640000
    "layer_types": [FULL, SLIDING, FULL],
    "out_hidden_size": 64,
    "n_rvq": 4,
    "local_rotary_base": 1e4,  # MiMo-Audio computes with rope_theta
    "input_local_head_dim": 16,
    "input_local_intermediate_size": 128,
    "group_size": 1 << 20,
    "num_hidden_layers": 10**9,
    "local_layers": 0,
    "vocab_size": 10**12,
    "head_dim": 31,
    "delay_pattern": "0-1-2-3-4-5-6-1000000000",
    "speech_vocab_size": 1 << 40,
    "rms_norm_eps": math.nan,
    "rope_theta": math.inf,
    "a_key_of_tomorrow": 1,
    "audio_config": {"a_key_of_tomorrow": 1},
    "architectures": ["MiMoV2OmniForCausalLM"],
}


@pytest.mark.parametrize("name", CHANGES_NUMBERS)
def test_what_would_change_numbers_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(**{name: CHANGES_NUMBERS[name]})
    key = "a_key_of_tomorrow" if name == "audio_config" else name
    key = {"n_rvq": "n_rvq", "speech_vocab_size": "speech_zeroemb_idx"}.get(key, key)
    assert key in str(error.value)


AUDIO_CONTRADICTIONS: dict[str, Any] = {
    "window_size": 961,
    "hop_length": 0,
    "encoder_layers": 0,
    "scale_embedding": True,
    "rope_type": "yarn",
    "rope_parameters": {"rope_type": "yarn", "factor": 8.0, "rope_theta": 10000},
    "nfft": 1 << 30,
    "num_quantizers": 1 << 40,
    "encoder_skip_layer_id": 6,
    "d_model": 66,
    "vocoder_attention_heads": 5,
    "fmin": 13000,
    "fmax": 12001,
    "rope_theta": math.nan,
    "quantization_config": {},
    "a_key_of_tomorrow": None,
}


@pytest.mark.parametrize("name", AUDIO_CONTRADICTIONS)
def test_an_audio_tokenizer_that_contradicts_itself(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        AudioTokenizerConfig.from_dict(AUDIO | {name: AUDIO_CONTRADICTIONS[name]})
    key = {"vocoder_attention_heads": "vocoder_dim"}.get(name, name)
    assert key in str(error.value)


def test_a_hop_above_its_window() -> None:
    with pytest.raises(ConfigError, match="hop_length 240 is above window_size 200"):
        AudioTokenizerConfig.from_dict(AUDIO | {"window_size": 200})


@pytest.mark.parametrize(
    "given",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 640000.0}},
        {"rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 640000}}},
        {"rope_scaling": {"type": "default"}, "rope_theta": 640000.0},
        {"rope_parameters": {"rope_theta": 640000.0, "partial_rotary_factor": 1.0}},
    ],
)
def test_theta_where_newer_tools_write_it(given: dict[str, Any]) -> None:
    config = LanguageModelConfig.from_dict(without(LM, "rope_theta", "rope_scaling") | given)
    assert config.rope_theta == config.local_rotary_base == 640000.0


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "llama3", "longrope", ["default"]])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_scaled_positions_are_refused(kind: Any, key: str) -> None:
    given = {"rope_type": kind, "factor": 8.0, "rope_theta": 640000.0}
    with pytest.raises(ConfigError, match=f"{key} has type .*not supported"):
        LanguageModelConfig.from_dict(without(LM, "rope_theta") | {key: given})


def test_bookkeeping_is_harmless() -> None:
    written = {"dtype": "float16", "use_cache": False, "auto_map": {}, "_name_or_path": "x"}
    assert parsed(**written, layer_types=[FULL] * 3) == parsed()


def test_full_attention_with_a_window_that_counts() -> None:
    with pytest.raises(ConfigError, match="layer_types says full attention, and sliding_window 64"):
        parsed(layer_types=[FULL] * 3, sliding_window=64)


def test_a_head_s_size_as_transformers_derives_it() -> None:
    config = LanguageModelConfig.from_dict(without(LM, "head_dim"))
    assert config.head_dim == LM["hidden_size"] // LM["num_attention_heads"]
    with pytest.raises(ConfigError, match="say head_dim"):
        LanguageModelConfig.from_dict(without(LM, "head_dim") | {"num_attention_heads": 10})


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("MiMoAudioModel", MIMO_AUDIO),
        ("MiMoAudioForCausalLM", MIMO_AUDIO),
        ("MiMoV2ASRForCausalLM", MIMO_V25_ASR),
        (None, MIMO_AUDIO),
    ],
)
def test_the_architectures(name: str | None, member: str) -> None:
    assert parsed(architectures=name and [name]).architecture == member


def test_v25_asr_by_its_keys() -> None:
    """Its own keys are used, whether they stand beside the others or in audio_config."""
    whole = LanguageModelConfig.from_dict(ASR)
    assert whole.architecture == MIMO_V25_ASR
    assert LanguageModelConfig.from_dict(without(ASR, "architectures")) == whole
    changed = ASR["audio_config"] | {"input_local_head_dim": 10, "input_local_attn_heads": 3}
    other = LanguageModelConfig.from_dict(
        ASR | {"audio_config": changed, "local_rotary_base": 5000.0}
    )
    assert (other.patch_encoder.head_dim, other.patch_encoder.heads) == (10, 3)
    assert other.patch_encoder.rope_theta == other.patch_decoder.rope_theta == 5000.0
    assert other.backbone.rope_theta == whole.backbone.rope_theta


def test_two_places_that_disagree() -> None:
    with pytest.raises(ConfigError, match="group_size is 4, and in audio_config 8"):
        LanguageModelConfig.from_dict(
            ASR | {"audio_config": ASR["audio_config"] | {"group_size": 8}}
        )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(json.dumps({"a": "é"}, ensure_ascii=False).encode(encoding))
    assert read_json(path) == {"a": "é"}


def test_a_key_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(codecs.BOM_UTF8 + b'{"rope_theta": 1, "rope_theta": 2}')
    with pytest.raises(CheckpointError, match="rope_theta is given twice"):
        read_json(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rms_norm_eps", 10**400),
        ("rope_theta", 10**400),
        ("rope_theta", "1e6"),
        ("vocab_size", 512.0),
        ("vocab_size", "512"),
        ("hidden_size", True),
        ("num_hidden_layers", 10**30),
        ("input_full_attention", "true"),
        ("attention_bias", "true"),
        ("attention_bias", 1),
        ("rms_norm_eps", math.nan),
        ("rms_norm_eps", math.inf),
        ("speech_vocab_size", [65.9] * 8),
        ("speech_vocab_size", [True] * 8),
        ("speech_vocab_size", "257-257-65-65-65-65-65-６5"),
        ("delay_pattern", "0-1-2-3-4-5-6-+7"),
        ("delay_pattern", "9" * 5000),
        ("architectures", [[]]),
        ("architectures", {"a": 1}),
        ("sosp_idx", "481"),
        ("sosp_idx", 1.0),
    ],
)
def test_numbers_in_another_writing_are_refused_by_name(name: str, value: Any) -> None:
    """None of them becomes what somebody may have meant."""
    with pytest.raises(ConfigError, match=name):
        parsed(**{name: value})


def test_numbers_that_are_the_same() -> None:
    config = parsed(rope_theta=10**6, rms_norm_eps=1)
    assert (config.rope_theta, config.rms_norm_eps) == (1e6, 1)
    assert parsed(delay_pattern=list(range(8))) == parsed(delay_pattern="0-1-2-3-4-5-6-7")
