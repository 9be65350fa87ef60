"""Whether the inputs of an export fit each other: what does not belong together is refused."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.config_keys import TOKEN_IDS, token_ids
from mimo_edge.mimo_ref.weights import read_config
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer


def check_text_fits(
    lm: LanguageModelConfig, checkpoint: Path, text: TextTokenizer, folder: Path
) -> None:
    """Raises InputError if ids of the tokenizer in `folder` are not those of the model."""
    ids = dataclasses.asdict(text.special)
    # special ids may lie beyond a gap, so the number of ids does not say which is the largest
    ids["the largest"] = max(text._tokenizer.get_vocab(with_added_tokens=True).values())
    beyond = {name: number for name, number in ids.items() if number >= lm.vocab_size}
    if beyond:
        name, number = next(iter(beyond.items()))
        raise InputError(
            f"{folder} is not the text tokenizer of {checkpoint}: its id {number} ({name}) is "
            f"beyond vocab_size {lm.vocab_size}. Take both from one release."
        )


def check_ids_fit(checkpoint: Path, text: TextTokenizer, folder: Path) -> None:
    """Raises InputError if config.json gives other ids to special tokens than the tokenizer in
    `folder` has."""
    for key, number in read_config(checkpoint, token_ids).items():
        found = text.find(TOKEN_IDS[key])
        if found != number:
            raise InputError(
                f"{folder} is not the text tokenizer of {checkpoint}: {TOKEN_IDS[key]} has the id "
                f"{found}, and config.json says {key} {number}. Take both from one release."
            )


def check_codes_fit(
    lm: LanguageModelConfig, checkpoint: Path, audio: AudioTokenizerConfig, folder: Path
) -> None:
    """Raises InputError if the codebooks in `folder` are not those that the model speaks in."""
    remedy = "Take both from one release."
    if lm.audio_channels > audio.num_quantizers:
        raise InputError(
            f"{folder} has {audio.num_quantizers} codebooks (num_quantizers), {checkpoint} speaks "
            f"in {lm.audio_channels} (audio_channels). {remedy}"
        )
    sizes = audio.codebook_size[: lm.audio_channels]
    if sizes != lm.speech_zeroemb_idx:  # the empty code is the one after a codebook's last
        raise InputError(
            f"{folder} has codebooks of {_joined(sizes)} codes (codebook_size), the empty codes "
            f"of {checkpoint} are {_joined(lm.speech_zeroemb_idx)} (speech_zeroemb_idx): they must "
            f"be equal. {remedy}"
        )


def _joined(numbers: Iterable[int]) -> str:
    return "-".join(map(str, numbers))
