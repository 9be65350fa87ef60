"""The models at their real sizes, without storage: numbers of parameters, and upstream's names."""

import re
from math import prod
from pathlib import Path

import pytest
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.weights import UNUSED
from mimo_edge.scripts.checkpoint.presets import PRESETS
from mimo_edge.scripts.checkpoint.safetensors_stream import Layout
from mimo_edge.scripts.make_checkpoint import audio_tokenizer, language_model, shapes_of
from safetensors import safe_open

from tests.golden import Golden

BILLION = 1e9


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return language_model(PRESETS["real"])


@pytest.fixture(scope="module")
def tokenizer() -> AudioTokenizer:
    return audio_tokenizer(PRESETS["real"])


def count(model: LanguageModel | AudioTokenizer, pattern: str = "") -> int:
    """Numbers in the checkpoint's tensors whose names match."""
    return sum(prod(shape) for name, shape in shapes_of(model).items() if re.match(pattern, name))


def qwen2(layers: int, dim: int, heads: int, kv_heads: int, head_dim: int, ffn: int) -> int:
    q, kv = heads * head_dim, kv_heads * head_dim
    attention = (dim + 1) * q + 2 * (dim + 1) * kv + q * dim
    return layers * (attention + 3 * dim * ffn + 2 * dim) + dim


def pre_norm(layers: int, dim: int, ffn: int) -> int:
    """The tokenizer's stack, with its last norm: no bias on k, LayerNorms with bias."""
    attention = 4 * dim * dim + 3 * dim
    return layers * (attention + 2 * dim * ffn + ffn + dim + 4 * dim) + 2 * dim


CODE_ROWS = 2 * 1025 + 6 * 129


def test_backbone(lm: LanguageModel) -> None:
    stack = qwen2(36, 4096, 32, 8, 128, 11008)
    assert count(lm, r"model\.(layers|norm)") == stack == 6_380_056_576
    assert count(lm, "lm_head") == 151680 * 4096
    assert stack + 151680 * 4096 == pytest.approx(7.0 * BILLION, rel=0.01)


def test_patch_encoder(lm: LanguageModel) -> None:
    stack = qwen2(6, 1024, 64, 64, 16, 4096)
    speech = CODE_ROWS * 1024 + stack + 4 * 1024 * 4096
    assert count(lm, "input_local|speech_") == speech == 120_364_032
    assert count(lm, r"model\.embed_tokens") == 151680 * 4096


def test_patch_decoder(lm: LanguageModel) -> None:
    stack = qwen2(16, 1024, 64, 64, 16, 4096)
    expected = 4096 * 1024 + stack + CODE_ROWS * 1024
    assert count(lm, "local_transformer|hidden_states") == expected == 275_604_480


def test_language_model(lm: LanguageModel) -> None:
    shared = CODE_ROWS * 1024  # no tensor of its own for the patch decoder's speech embeddings
    text = 2 * 151680 * 4096
    assert count(lm) == 6_380_056_576 + text + 120_364_032 + 275_604_480 == 8_018_587_648
    assert count(lm, "speech_embeddings") == shared


def test_audio_tokenizer(tokenizer: AudioTokenizer) -> None:
    d, mels, bins = 1280, 128, 960 // 2 + 1
    encoder = (3 * mels + 1) * d + (3 * d + 1) * d + pre_norm(32, d, 5120) + 2 * d * d + 2 * d
    codebooks = (2 * 1024 + 18 * 128) * d
    up = (2 * d + 3) * d + (3 * d + 3) * mels  # transposed convolutions with their norms
    vocoder = mels * 256 + pre_norm(16, 256, 1024) + (256 + 1) * 2 * bins
    decoder = up + pre_norm(32, d, 5120) + vocoder
    window = 960
    assert count(tokenizer, r"encoder\.(?!quantizer)") == encoder
    assert count(tokenizer, r"encoder\.quantizer") == codebooks
    assert count(tokenizer, "decoder") == decoder + window
    assert count(tokenizer) == encoder + codebooks + decoder + window == 1_290_224_642
    assert count(tokenizer) == pytest.approx(1.2 * BILLION, rel=0.1)


def kinds(names: list[str]) -> set[str]:
    """Names with every index left open."""
    return {re.sub(r"\.\d+\.", ".N.", name) for name in names if not UNUSED.search(name)}


def names_on_disk(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return list(file.keys())


def test_names_are_upstream_s(golden: Golden, lm: LanguageModel, tokenizer: AudioTokenizer) -> None:
    """Upstream itself wrote the golden checkpoints; ours has names of the same kinds."""
    written = [names_on_disk(golden.folder / name) for name in golden.lm_names]
    # this one exists only where the two local stacks differ in width
    optional = {"speech_embeddings_to_local.weight"}
    assert kinds(list(shapes_of(lm))) == set().union(*map(kinds, written)) - optional
    on_disk = names_on_disk(golden.folder / "audio_tokenizer")
    assert kinds(list(shapes_of(tokenizer))) == kinds(on_disk)


@pytest.mark.parametrize("part", ["language_model", "audio_tokenizer"])
def test_shards(lm: LanguageModel, tokenizer: AudioTokenizer, part: str) -> None:
    """Every tensor once, in files of at most 2 GiB."""
    model = lm if part == "language_model" else tokenizer
    layout = Layout(shapes_of(model), PRESETS["real"].dtype)
    files = layout.files()
    assert [name for names in files.values() for name in names] == list(layout.shapes)
    assert all(layout.tensor_bytes(names) <= 2 << 30 for names in files.values())
    assert layout.total_bytes == 2 * count(model)
