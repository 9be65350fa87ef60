"""Recipes: the presets, files of a user, and what is refused with what may stand there."""

from pathlib import Path

import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.components import COMPONENTS, Matrix, component_of
from mimo_edge.engines.recipe import Form
from mimo_edge.engines.recipe_text import dump
from mimo_edge.engines.weigh import as_parts, form_bytes, weigh
from mimo_edge.runtime.bundle.errors import RecipeError
from mimo_edge.scripts.checkpoint.shapes import real_shapes
from mimo_edge.scripts.cli import main

LAYER = Matrix("backbone.model.layers.3.mlp.down_proj.weight", "backbone", 96, 160)
TABLE = Matrix("patch_encoder.text_embedding.weight", "text_embedding", 512, 96)
HEAD = 'name = "mine"\nabout = "a test"\n'


def read(folder: Path, text: str) -> recipe.Recipe:
    (folder / "mine.toml").write_text(HEAD + text, encoding="utf-8")
    return recipe.load(str(folder / "mine.toml"))


def test_presets() -> None:
    wanted = {"fp32", "fp16", "bf16", "int8", "int8-w8a8", "int4", "int4-awq", "int4-edge", "fp8"}
    assert wanted == set(recipe.names())
    for name in wanted:
        found = recipe.load(name)
        assert found.quantizes == (name not in ("fp32", "fp16", "bf16"))
        assert bool(found.calibrated) == (name in ("int8-w8a8", "int4-awq", "fp8"))
        assert tuple(found.components) == COMPONENTS
        assert found.components["codebooks"].weights.scheme == recipe.FLOAT


def test_a_file_of_the_user(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
[default]
weights = { scheme = "int8" }
[components.backbone]
weights = { scheme = "int4", block = [128, 32], method = "search" }
activations = "dynamic"
[[exceptions]]
tensors = "*.layers.0.*"
weights = { scheme = "int8", block = 64 }
[[exceptions]]
tensors = "backbone.model.layers.0.mlp.*"
weights = { scheme = "float" }
""",
    )
    assert found.form(LAYER) == Form("int4", 32, "search")  # 128 does not divide 160
    first = "backbone.model.layers.0."
    wide = Matrix(f"{first}self_attn.q_proj.weight", "backbone", 96, 128)
    assert found.form(wide) == Form("int8", 64, "nearest")
    assert found.form(Matrix(f"{first}mlp.up_proj.weight", "backbone", 96, 128)) is None
    assert found.form(TABLE) == Form("int8", 0, "nearest")


def test_a_block_that_does_not_divide_is_refused_with_those_that_do(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        '[default]\nweights = { scheme = "int4", block = 64 }\n'
        '[components.text_embedding]\nweights = { scheme = "float" }\n'
        '[components.speech_embeddings]\nweights = { scheme = "float" }\n',
    )
    with pytest.raises(RecipeError, match=r"64 divides not the 160 inputs of .*down_proj.* 32; "):
        found.form(LAYER)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[components.bakbone]\n", r"a component is 'bakbone'; choose one of .*backbone"),
        ("[components.kv_cache]\n", "'kv_cache', which .* build --target ort-cpu --kv-c"),
        ("[componets.backbone]\n", "a key of the recipe is 'componets'"),
        ('[default]\ncompute = "int8"\n', r"compute of .* is 'int8'; choose one of fp32, fp16"),
        ('[default]\nweights = { scheme = "int3" }\n', "'int3'; choose one of float, int4, int8"),
        ('[default]\nweights = { scheme = "int4", block = 48 }\n', "block 48; choose of 32, 64"),
        ('[default]\nweights = { scheme = "int4" }\n', "block None; choose of 32, 64, 128"),
        ('[default]\nweights = { scheme = "fp8", block = 64 }\n', "block 64; choose of channel"),
        ('[default]\nweights = { scheme = "int8", block = 0 }\n', "block 0; choose of channel"),
        ('[default]\nweights = { scheme = "int8", blok = 32 }\n', "'blok'; choose one of scheme"),
        ('[default]\nweights = { scheme = "int8", method = "gptq" }\n', "nearest, search"),
        ('[default]\nweights = "int8"\n', "weights must be a table"),
        ('[default]\nactivations = "int8"\n', "int8 activations and float weights"),
        ('[components.codebooks]\nweights = { scheme = "int8" }\n', "codebooks stay in fp32"),
        (
            '[components.text_embedding]\nweights = { scheme = "int4", block = 32 }\n',
            "a table whose rows are looked up; it can be int8 by channel, or float",
        ),
        ('[components.backbone]\ncompute = "fp16"\n', r"one precision, not in fp32 .*fp16 \(back"),
        ('[components.vocoder]\ncompute = "fp16"\n', "tokenizer_decoder, vocoder hand their"),
        ('[[exceptions]]\ntensors = "*"\nweights = { scheme = "no" }\n', "scheme of an exception"),
        ("[[exceptions]]\n", "tensors must be a text"),
        ('float_inputs = "*"\n', r"float_inputs must be a list of texts, not '\*'"),
        ("[default\n", "cannot be read as TOML"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as error:
        read(tmp_path, text)
    assert "mine.toml" in str(error.value)


def test_a_name_that_is_not_the_files(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(HEAD, encoding="utf-8")
    with pytest.raises(RecipeError, match="names itself 'mine'"):
        recipe.load(str(tmp_path / "other.toml"))


def test_every_tensor_of_the_model_has_its_component() -> None:
    named = [(name, component_of(name)) for name, _ in real_shapes()]
    assert all(component is not None for _, component in named)
    assert {component for _, component in named} == set(COMPONENTS)
    found = dict(named)
    for name, component in (
        ("patch_decoder.speech_embeddings.7.weight", "speech_embeddings"),
        ("patch_decoder.local_transformer_lm_heads.0.weight", "speech_heads"),
        ("patch_decoder.hidden_states_downcast.weight", "patch_decoder"),
        ("patch_encoder.speech_group_downcast.weight", "patch_encoder"),
        ("backbone.lm_head.weight", "lm_head"),
        ("decoder.vocoder.head.out.weight", "vocoder"),
        ("decoder.dconv2.conv.weight", "tokenizer_decoder"),
    ):
        assert found[name] == component


ROUNDED = """
float_inputs = ["*.layers.?.mlp.*"]
[components.backbone]
weights = { scheme = "int8", method = "awq" }
activations = "int8"
"""


def test_inputs_are_rounded_but_those_that_are_named(tmp_path: Path) -> None:
    found = read(tmp_path, ROUNDED)
    query = Matrix("backbone.model.layers.3.self_attn.q_proj.weight", "backbone", 96, 128)
    assert found.rounding(query) == "int8" and found.rounding(LAYER) is None
    assert found.rounding(Matrix("backbone.lm_head.weight", "lm_head", 96, 128)) is None
    (tmp_path / "mine.toml").write_text(dump(found), encoding="utf-8")
    assert recipe.load(str(tmp_path / "mine.toml")) == found
    assert found.form(query) == Form("int8", 0, "awq")
    other = '[[exceptions]]\ntensors = "*.q_proj.*"\nweights = { scheme = "int8", block = 64 }\n'
    with pytest.raises(RecipeError, match=r"q_proj.* int8 weights in the block '64'.*float_inputs"):
        read(tmp_path, ROUNDED + other).form(query)


def test_tables_are_searched_where_layers_are_activation_aware(tmp_path: Path) -> None:
    """Nothing that could be known goes into a row that is looked up."""
    found = read(tmp_path, '[default]\nweights = { scheme = "int8", method = "awq" }\n')
    assert found.form(TABLE) == Form("int8", 0, "search")
    assert found.calibrated and not read(tmp_path, "").calibrated


def test_bytes_count_scales() -> None:
    assert form_bytes(LAYER, Form("int4", 32, "nearest"), 4) == 96 * 160 // 2 + 96 * 5 * 4
    assert form_bytes(LAYER, Form("int8", 0, "nearest"), 2) == 96 * 160 + 96 * 2
    assert form_bytes(LAYER, None, 2) == 96 * 160 * 2


def test_the_smallest_recipe_of_the_real_model_weighs_what_is_promised() -> None:
    shares = weigh(recipe.load("int4-edge"), as_parts(real_shapes()), "fp32")
    assert sum(share.bytes for share in shares) <= 5.6e9
    assert sum(share.numbers for share in shares) > 9.3e9


def test_show_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "list"]) == 0
    assert "int4-edge" in capsys.readouterr().out
    assert main(["recipe", "show", "int8", "--for", "real"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMPONENTS) and "252 int8" in shown
    assert main(["recipe", "show", "int9"]) == 2
    assert "int8-w8a8" in capsys.readouterr().err
