"""A checkpoint pair in exactly the released layout, from trained models."""

import json
from pathlib import Path
from typing import Any

import torch
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.weights import upstream_tensors
from mimo_edge.runtime.bundle.files import hash_file
from mimo_edge.scripts.checkpoint.pair_folder import AUDIO_TOKENIZER, LANGUAGE_MODEL
from mimo_edge.scripts.nano.sizes import NANO
from mimo_edge.scripts.nano.text_tokenizer import write_tokenizer
from safetensors.torch import save_file
from torch import Tensor

CHECKSUMS = "SHA256SUMS"
# Upstream's presets draw codes at temperature 0.9. A model so small is less sure than one of 7B,
# and at 0.9 takes a word for another: divided by this, its scores are drawn as if at 0.3.
CODE_TEMPERATURE = 0.3 / 0.9


def save_language_model(model: LanguageModel, out: Path, dtype: torch.dtype = NANO.dtype) -> Path:
    """Write `out`/language_model, text tokenizer included; returns the folder."""
    folder = _save(model, NANO.language_model, out / LANGUAGE_MODEL, dtype)
    write_tokenizer(folder)
    return folder


def save_audio_tokenizer(model: AudioTokenizer, out: Path, dtype: torch.dtype = NANO.dtype) -> Path:
    """Write `out`/audio_tokenizer; returns the folder."""
    return _save(model, NANO.audio_tokenizer, out / AUDIO_TOKENIZER, dtype)


@torch.no_grad()
def sharpen(model: LanguageModel, temperature: float = CODE_TEMPERATURE) -> None:
    """Divide the scores of all codes by `temperature`, in the weights. Text stays as it is."""
    for head in model.patch_decoder.local_transformer_lm_heads:
        for weight in head.parameters():
            weight.div_(temperature)


def write_checksums(out: Path) -> Path:
    """Write `out`/SHA256SUMS of the pair, as `sha256sum -c` reads it."""
    files = [p for part in (AUDIO_TOKENIZER, LANGUAGE_MODEL) for p in (out / part).iterdir()]
    lines = [
        f"{hash_file(path).sha256}  {path.relative_to(out).as_posix()}\n" for path in sorted(files)
    ]
    path = out / CHECKSUMS
    path.write_text("".join(lines), encoding="utf-8")
    return path


def tensors(model: LanguageModel | AudioTokenizer, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's tensors by upstream's names; one that two pieces share is there once."""
    values = {piece: piece.state_dict() for piece in model.pieces()}
    places = upstream_tensors(model.pieces())
    return {
        name: values[piece][local].to(dtype, copy=True).contiguous()
        for name, [(piece, local), *_] in places.items()
    }


def _save(
    model: LanguageModel | AudioTokenizer, config: dict[str, Any], folder: Path, dtype: torch.dtype
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = config | {"torch_dtype": str(dtype).removeprefix("torch.")}
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    save_file(tensors(model, dtype), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
