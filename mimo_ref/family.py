"""The models of the family that are computed here, and how a config says which one it is of."""

from collections.abc import Mapping
from typing import Any

from mimo_edge.mimo_ref.errors import ConfigError

# as the released configs say it
MIMO_AUDIO, MIMO_V25_ASR = "MiMoAudioForCausalLM", "MiMoV2ASRForCausalLM"
ARCHITECTURES = {
    MIMO_AUDIO: MIMO_AUDIO,
    "MiMoAudioModel": MIMO_AUDIO,  # in configs that other tools write
    MIMO_V25_ASR: MIMO_V25_ASR,
}
# keys of MiMo-V2.5-ASR's config that MiMo-Audio's has not
_V25_KEYS = ("audio_config", "n_rvq", "local_rotary_base", "input_local_head_dim")


def architecture_of(raw: Mapping[str, Any]) -> str:
    """Which model a language model's config is of: by its architecture, without one by its keys.

    Raises ConfigError for another architecture.
    """
    names = raw.get("architectures")
    if not names:
        return MIMO_V25_ASR if any(name in raw for name in _V25_KEYS) else MIMO_AUDIO
    one = names[0] if isinstance(names, list) and len(names) == 1 else None
    if isinstance(one, str) and one in ARCHITECTURES:
        return ARCHITECTURES[one]
    raise ConfigError(
        f"architectures is {names!r:.80}, which is not computed here, only "
        f"{', '.join(ARCHITECTURES)}. "
        "Take a checkpoint of MiMo-Audio or MiMo-V2.5-ASR."
    )
