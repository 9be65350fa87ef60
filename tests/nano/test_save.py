"""What is saved is what the strict loaders read."""

from pathlib import Path

import pytest
import torch
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.mimo_ref.tensor_files import TensorFiles
from mimo_edge.mimo_ref.weights import load_audio_tokenizer, load_language_model
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from mimo_edge.scripts.checkpoint.presets import PRESETS
from mimo_edge.scripts.nano.forcing import code_scores
from mimo_edge.scripts.nano.save import save_audio_tokenizer, save_language_model, sharpen
from mimo_edge.scripts.nano.sizes import CODEBOOKS, NANO, SPECIALS
from mimo_edge.scripts.nano.train_lm import new_model


def test_a_language_model_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = new_model()
    folder = save_language_model(model, tmp_path)
    again = load_language_model(folder)
    assert (
        again.empty_id == SPECIALS["<|empty|>"] == TextTokenizer.from_folder(folder).special.empty
    )
    ours, theirs = model.state_dict(), again.state_dict()
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert value.dtype == torch.float16
        assert torch.equal(value, ours[name].half()), name


def test_a_sharpened_model_scores_codes_as_if_colder_and_text_as_before() -> None:
    torch.manual_seed(0)
    model = new_model()
    hidden = torch.randn(3, model.config.backbone.dim)
    codes = torch.stack([torch.randint(0, size, (3, 4)) for size in CODEBOOKS], dim=1)
    with torch.no_grad():
        before = code_scores(model.patch_decoder, hidden, codes)
        text = model.backbone.text_logits(hidden)
        sharpen(model, 0.5)
        after = code_scores(model.patch_decoder, hidden, codes)
    for scores, sharper in zip(before, after, strict=True):
        torch.testing.assert_close(sharper, scores * 2)
    assert torch.equal(model.backbone.text_logits(hidden), text)


def test_an_audio_tokenizer_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AudioTokenizer(AudioTokenizerConfig.from_dict(NANO.audio_tokenizer))
    folder = save_audio_tokenizer(model, tmp_path)
    again = load_audio_tokenizer(folder)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half()), name
    assert "encoder.quantizer.vq.layers.7._codebook.embed" in TensorFiles(folder).where


def test_both_fit_in_25_megabytes(tmp_path: Path) -> None:
    config = AudioTokenizerConfig.from_dict(NANO.audio_tokenizer)
    save_audio_tokenizer(AudioTokenizer(config), tmp_path)
    save_language_model(new_model(), tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.*")) < 25e6


def test_saving_in_another_dtype(tmp_path: Path) -> None:
    model = load_language_model(save_language_model(new_model(), tmp_path, torch.bfloat16))
    assert next(model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["encoder_skip_layer_id", "vocoder_attn_window_size", "n_mels"])
def test_the_layout_is_the_released_one(name: str) -> None:
    assert NANO.audio_tokenizer[name] == PRESETS["real"].audio_tokenizer[name]
    assert set(NANO.audio_tokenizer) == set(PRESETS["real"].audio_tokenizer)
    assert set(NANO.language_model) == set(PRESETS["real"].language_model)
