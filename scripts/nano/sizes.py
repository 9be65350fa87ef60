"""The sizes of nano, as the two released `config.json` files say them.

About 12 million parameters in all: at most 25 MB in fp16.
"""

from dataclasses import replace

import torch
from mimo_edge.runtime.chat.text_tokenizer import SPEECH_TOKENS
from mimo_edge.scripts.checkpoint.presets import PRESETS, Preset
from mimo_edge.scripts.checkpoint.small_tokenizer import QWEN_SPECIALS, THINK_SPECIALS

BPE_SIZE = 1056  # 256 bytes and 800 merges: nearly every word of the grammar is one token
SPECIALS = {
    token: BPE_SIZE + offset
    for offset, token in enumerate((*QWEN_SPECIALS[:3], *THINK_SPECIALS, *SPEECH_TOKENS))
}
CODEBOOKS = (256, 256, 64, 64, 64, 64, 64, 64)
# upstream's weights in the loss of the language model: text, then each codebook
TEXT_WEIGHT = 100.0
CODE_WEIGHTS = (12.0, 8.0, 6.0, 4.0, 2.0, 2.0, 1.0, 1.0)

_END = SPECIALS["<|endoftext|>"]
_TINY = PRESETS["tiny"]

NANO: Preset = replace(
    _TINY,
    specials=SPECIALS,
    dtype=torch.float16,
    language_model=_TINY.language_model
    | {
        "torch_dtype": "float16",
        "bos_token_id": _END,
        "eos_token_id": _END,
        "vocab_size": 1088,
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 576,
        "rope_theta": 10000.0,
        "local_dim": 160,
        "local_layers": 3,
        "local_attn_heads": 8,
        "local_ffn_dim": 480,
        "input_local_dim": 160,
        "input_local_layers": 2,
        "speech_vocab_size": "-".join(str(size + 1) for size in CODEBOOKS),
        "speech_zeroemb_idx": "-".join(str(size) for size in CODEBOOKS),
    },
    audio_tokenizer=_TINY.audio_tokenizer
    | {
        "torch_dtype": "float16",
        "d_model": 192,
        "encoder_layers": 4,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 768,
        "decoder_layers": 4,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 768,
        "vocoder_dim": 160,
        "vocoder_num_layers": 4,
        "vocoder_attention_heads": 4,
        "vocoder_intermediate_dim": 640,
        "num_quantizers": len(CODEBOOKS),
        "codebook_size": list(CODEBOOKS),
    },
)
