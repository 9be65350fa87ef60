"""The backbone against an independent implementation: the Qwen2 model of transformers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from mimo_edge.mimo_ref.backbone import Backbone, KVCache
from mimo_edge.mimo_ref.config import LanguageModelConfig
from mimo_edge.parity import tolerances
from mimo_edge.parity.tolerances import difference
from mimo_edge.scripts.checkpoint.presets import PRESETS

SHAPES: dict[str, dict[str, Any]] = {
    "every head its own keys": {},
    "grouped heads": {"num_key_value_heads": 2, "head_dim": 8},
    "one key head, wide heads": {"num_key_value_heads": 1, "head_dim": 32},
    "narrow heads, small theta": {"head_dim": 4, "rope_theta": 500.0, "rms_norm_eps": 1e-3},
}


def build(changes: dict[str, Any]) -> tuple[Backbone, torch.nn.Module]:
    """Ours and theirs with the same random weights; biases and norms are random too."""
    config = replace(
        LanguageModelConfig.from_dict(PRESETS["tiny"].language_model),
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        sliding_window=None,
        **{"num_key_value_heads": 4, "head_dim": 16} | changes,
    )
    ours = Backbone(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in ours.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter.shape[-1] if parameter.dim() > 1 else 10
        parameter.data = values / fan_in**0.5 + (1.0 if name.endswith("norm.weight") else 0.0)
    theirs = transformers.Qwen2Model(
        transformers.Qwen2Config(
            vocab_size=1,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    )
    missing = theirs.load_state_dict(ours.model.state_dict(), strict=False)
    assert missing.missing_keys == ["embed_tokens.weight"] and not missing.unexpected_keys
    return ours.requires_grad_(False), theirs.eval().requires_grad_(False)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_backbone(changes: dict[str, Any]) -> None:
    """A prefill, then single steps with the cache."""
    ours, theirs = build(changes)
    x = torch.randn(2, 13, ours.config.hidden_size, generator=torch.Generator().manual_seed(1))
    cache, their_cache = KVCache(ours.config.backbone, 2, 13), transformers.DynamicCache()
    for part in x.split([9, 1, 1, 2], dim=1):
        state = ours(part, cache)
        output = theirs(inputs_embeds=part, past_key_values=their_cache, use_cache=True)
        gap = difference(state, output.last_hidden_state)
        assert gap <= tolerances.ORACLE.absolute
