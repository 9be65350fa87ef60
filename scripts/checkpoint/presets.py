"""Configs of the random checkpoints: `real` has every size of the released 7B, `tiny` fits a test,
`tiny-asr` is a MiMo-V2.5-ASR that fits one.

The dictionaries are the two `config.json` files, with all the keys that the released ones have.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from mimo_edge.runtime.chat.text_tokenizer import SPEECH_TOKENS
from mimo_edge.scripts.checkpoint.small_tokenizer import BPE_SIZE, QWEN_SPECIALS, THINK_SPECIALS

Config = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """What one random checkpoint pair is made from."""

    language_model: Config
    audio_tokenizer: Config
    specials: dict[str, int]  # special token -> id
    dtype: torch.dtype

    def cut(self, layers: int) -> "Preset":
        """The same with at most `layers` layers in every stack."""
        language_model = _cut(self.language_model, layers)
        audio_tokenizer = _cut(self.audio_tokenizer, layers)
        # a skip from the last layer would only double the state, which the norm undoes
        last = max(1, audio_tokenizer["encoder_layers"] - 1)
        skip = min(audio_tokenizer["encoder_skip_layer_id"], last)
        audio_tokenizer["encoder_skip_layer_id"] = skip
        return replace(self, language_model=language_model, audio_tokenizer=audio_tokenizer)


def _cut(config: Config, layers: int) -> Config:
    stacks = (
        "num_hidden_layers",
        "local_layers",
        "input_local_layers",
        "encoder_layers",
        "decoder_layers",
        "vocoder_num_layers",
    )
    cut = config | {name: min(config[name], layers) for name in stacks if name in config}
    if "layer_types" in config:
        cut["layer_types"] = config["layer_types"][:layers]
    if "audio_config" in config:
        cut["audio_config"] = _cut(config["audio_config"], layers)
    return cut


_LANGUAGE_MODEL: Config = {
    "architectures": ["MiMoAudioForCausalLM"],
    "attention_dropout": 0.0,
    "audio_channels": 8,
    "delay_pattern": "0-1-2-3-4-5-6-7",
    "group_size": 4,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "input_full_attention": True,
    "local_attn_dropout": 0.1,
    "max_position_embeddings": 8192,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 640000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "transformers_version": "4.49.0",
    "use_cache": True,
    "use_sliding_window": False,
}

# what MiMo-V2.5-ASR's config has beside or in place of the above
_V25_ASR: Config = {
    "add_input_local_transformer": True,
    "add_speech_sosp_eosp": False,
    "architectures": ["MiMoV2ASRForCausalLM"],
    "attention_bias": True,
    "empty_loss_weight": 0.01,
    "local_hidden_dropout": 0.1,
    "mlp_layers": 1,
    "n_rvq": 20,
    "no_speech_loss": False,
    "no_text_loss": False,
    "sliding_window": None,
    "transformers_version": "4.57.1",
}

_AUDIO_TOKENIZER: Config = {
    "activation_function": "gelu",
    "architectures": ["MiMoAudioTokenizer"],
    "avg_pooler": 2,
    "decoder_attn_window_size": [-1, -1],
    "decoder_causal": True,
    "decoder_kernel_size": 3,
    "decoder_stride_size": 2,
    "encoder_attn_window_size": [-1, -1],
    "encoder_causal": False,
    "encoder_skip_layer_id": 3,
    "fmax": None,
    "fmin": 0,
    "hop_length": 240,
    "kernel_size": 3,
    "ln_type": "LayerNorm",
    "max_audio_seconds": 1800,
    "model_type": "mimo_audio_tokenizer",
    "n_mels": 128,
    "nfft": 960,
    "num_quantizers": 20,
    "position_embedding_type": "rope",
    "rope_theta": 10000,
    "rope_type": "default",
    "sampling_rate": 24000,
    "scale_embedding": False,
    "stride_size": 2,
    "threshold_ema_dead_code": 10,
    "transformers_version": "4.49.0",
    "vocoder_attn_window_size": [40, 10],
    "vocoder_padding": "same",
    "window_size": 960,
}


def _codes(first: int, later: int) -> Config:
    """Each codebook of the language model has one id more than the tokenizer's: the empty one."""
    sizes = [first] * 2 + [later] * 6
    return {
        "speech_vocab_size": "-".join(str(size + 1) for size in sizes),
        "speech_zeroemb_idx": "-".join(str(size) for size in sizes),
    }


def _numbered(first_id: int, tokens: tuple[str, ...]) -> dict[str, int]:
    return {token: first_id + offset for offset, token in enumerate(tokens)}


def _preset(
    language_model: Config, audio_tokenizer: Config, specials: dict[str, int], dtype: torch.dtype
) -> Preset:
    common = {"torch_dtype": str(dtype).removeprefix("torch.")}
    end = specials["<|endoftext|>"]
    return Preset(
        _LANGUAGE_MODEL | common | {"bos_token_id": end, "eos_token_id": end} | language_model,
        _AUDIO_TOKENIZER | common | audio_tokenizer,
        specials,
        dtype,
    )


_TINY: Config = {
    "vocab_size": 512,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 160,
    "local_dim": 64,
    "local_layers": 3,
    "local_attn_heads": 8,
    "local_ffn_dim": 128,
    "input_local_dim": 64,
    "input_local_layers": 2,
    **_codes(256, 64),
}
_TINY_AUDIO: Config = {
    "d_model": 64,
    "encoder_layers": 5,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_layers": 4,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 128,
    "vocoder_dim": 32,
    "vocoder_num_layers": 3,
    "vocoder_attention_heads": 4,
    "vocoder_intermediate_dim": 64,
    "codebook_size": [256] * 2 + [64] * 18,
}

PRESETS: dict[str, Preset] = {
    "tiny": _preset(
        _TINY,
        _TINY_AUDIO,
        _numbered(BPE_SIZE, (*QWEN_SPECIALS[:3], *THINK_SPECIALS, *SPEECH_TOKENS)),
        torch.float32,
    ),
    "tiny-asr": _preset(
        _TINY
        | _V25_ASR
        | {
            "layer_types": ["full_attention"] * 3,
            "local_rotary_base": 320000,  # not rope_theta, so that a mix-up shows
            "audio_config": {
                "tokenizer_version": "v1",
                **_codes(256, 64),
                "group_size": 4,
                "audio_channels": 8,
                "input_local_layers": 2,
                "input_local_dim": 64,
                "input_full_attention": True,
                "input_local_attn_heads": 8,
                "input_local_head_dim": 8,
                "input_local_intermediate_size": 192,
                "input_local_hidden_dropout": 0.1,
                "out_hidden_size": 96,
            },
        },
        _TINY_AUDIO,
        # the released tokenizer, too, spells <think> as plain text
        _numbered(BPE_SIZE, (*QWEN_SPECIALS[:3], *SPEECH_TOKENS)),
        torch.float32,
    ),
    "real": _preset(
        {
            "vocab_size": 151680,
            "hidden_size": 4096,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 11008,
            "local_dim": 1024,
            "local_layers": 16,
            "local_attn_heads": 64,
            "local_ffn_dim": 4096,
            "input_local_dim": 1024,
            "input_local_layers": 6,
            **_codes(1024, 128),
        },
        {
            "d_model": 1280,
            "encoder_layers": 32,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "decoder_layers": 32,
            "decoder_attention_heads": 20,
            "decoder_ffn_dim": 5120,
            "vocoder_dim": 256,
            "vocoder_num_layers": 16,
            "vocoder_attention_heads": 16,
            "vocoder_intermediate_dim": 1024,
            "codebook_size": [1024] * 2 + [128] * 18,
        },
        # as the released files: Qwen2.5's 22 tokens (none for <think>), then the eight of speech
        _numbered(151643, (*QWEN_SPECIALS, *SPEECH_TOKENS)),
        torch.bfloat16,
    ),
}
