"""Names and shapes of a model's tensors, from its configs alone."""

from collections.abc import Iterator

import torch
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel


def graph_tensors(
    lm: LanguageModelConfig, audio: AudioTokenizerConfig, speech: bool = True
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """By their names in the graphs, once for each graph that holds them; without what makes
    speech, if not `speech`."""
    with torch.device("meta"):
        model, tokenizer = LanguageModel(lm, 0), AudioTokenizer(audio)
    listens = (
        ("patch_encoder", model.patch_encoder),
        ("backbone", model.backbone),
        ("encoder", tokenizer.encoder),
        ("quantizer", tokenizer.quantizer),
    )
    speaks = (
        ("patch_decoder", model.patch_decoder),
        ("quantizer", tokenizer.quantizer),
        ("decoder", tokenizer.decoder),
    )
    for owner, module in (*listens, *(speaks if speech else ())):
        for name, tensor in module.state_dict().items():
            yield f"{owner}.{name}", tuple(tensor.shape)
