"""Mutations of what an export reads: configs, indexes, weight files, recipes."""

import random
import tomllib
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.recipe import Recipe
from mimo_edge.export.weights import check_dtypes
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.tensor_files import INDEX, TensorFiles
from mimo_edge.mimo_ref.weights import read_config
from mimo_edge.runtime.bundle.errors import RecipeError
from safetensors.numpy import save_file

from tests import v25_asr
from tests.fuzz.mutations import COUNTS, mutated_bytes, mutated_json, mutated_value, try_all
from tests.golden import Golden


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("model", ["lm", "v25_asr", "audio_tokenizer"])
def test_configs(golden: Golden, tmp_path: Path, model: str, count: int) -> None:
    folders = {
        "lm": golden.folder / golden.lm_names[0],
        "v25_asr": v25_asr.LANGUAGE_MODEL,
        "audio_tokenizer": golden.folder / "audio_tokenizer",
    }
    path = tmp_path / "config.json"
    path.write_bytes((folders[model] / path.name).read_bytes())
    speaks = model != "audio_tokenizer"
    parse = LanguageModelConfig.from_dict if speaks else AudioTokenizerConfig.from_dict
    refused = try_all(path, count // 2, mutated_json, lambda: read_config(tmp_path, parse), 6)
    assert refused > count // 8


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A checkpoint of two files and their index."""
    numbers = np.arange(12, dtype=np.float32)
    save_file({"a": numbers, "b.weight": numbers.reshape(3, 4)}, tmp_path / "model-1.safetensors")
    save_file({"c": numbers.astype(np.float16)}, tmp_path / "model-2.safetensors")
    places = ("a", 1), ("b.weight", 1), ("c", 2)
    named = ", ".join(f'"{name}": "model-{file}.safetensors"' for name, file in places)
    (tmp_path / INDEX).write_text(
        f'{{"metadata": {{"total_size": 120}}, "weight_map": {{{named}}}}}'
    )
    return tmp_path


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", [INDEX, "model-1.safetensors"])
def test_weight_files(shards: Path, name: str, count: int) -> None:
    def read() -> object:
        files = TensorFiles(shards)
        names = [name for name in ("a", "b.weight", "c") if name in files.where]
        check_dtypes(files, names)
        return [(files.shape(name), files.read(name).sum()) for name in names]

    read()
    mutate = mutated_json if name == INDEX else mutated_bytes
    assert try_all(shards / name, count // 4, mutate, read, 7) > count // 20


@pytest.mark.parametrize("count", COUNTS)
def test_recipes(tmp_path: Path, count: int) -> None:
    path = tmp_path / "int4-edge.toml"
    path.write_bytes((recipe.FOLDER / path.name).read_bytes())
    taken: list[Recipe] = []
    refused = try_all(
        path, count // 4, mutated_bytes, lambda: taken.append(recipe.load(str(path))), 8
    )
    assert refused > count // 10 and all(isinstance(r, Recipe) for r in taken)


@pytest.mark.parametrize("count", COUNTS)
def test_values_of_recipes(count: int) -> None:
    """What TOML can hold where something else is expected, and null, which it cannot."""
    path = recipe.FOLDER / "int4-edge.toml"
    raw, refused = tomllib.loads(path.read_text(encoding="utf-8")), 0
    for number in range(count // 4):
        changed = mutated_value(raw, random.Random(13_000_003 + number))
        if not isinstance(changed, dict):
            continue
        try:
            recipe.parse(changed, path)
        except RecipeError:
            refused += 1
        except BaseException as error:
            error.add_note(f"mutation {number}: {changed!r}")
            raise
    assert refused > count // 10
