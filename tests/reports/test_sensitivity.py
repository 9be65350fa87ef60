"""Components ranked by what restoring each wins, and the recipe that comes of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.recipe import FLOAT, Weights
from mimo_edge.engines.recipe_text import dump
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.sensitivity import Gain, Losses, losses, rank, restored, spend
from mimo_edge.runtime.bundle.bundle import Bundle


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_survives_its_text(tmp_path: Path, name: str) -> None:
    chosen = recipe.load(name)
    path = tmp_path / f"{name}.toml"
    path.write_text(dump(chosen), encoding="utf-8")
    assert recipe.load(str(path)) == chosen


def test_the_component_that_hurts_wins_most(own: Recording, bundle: Path) -> None:
    """int4 in the backbone, int8 in the audio tokenizer's decoder, floats elsewhere."""
    fine = recipe.load("int8")
    whole = {
        name: replace(part, weights=Weights(), activations=FLOAT)
        for name, part in fine.components.items()
    }
    rough = replace(whole["backbone"], weights=Weights("int4", (32,)))
    parts = {**whole, "backbone": rough, "tokenizer_decoder": fine.components["tokenizer_decoder"]}
    mixed = replace(fine, components=parts, exceptions=())
    gains = {gain.component: gain for gain in rank(Bundle.open(bundle), mixed, own, threads=1)}
    assert set(gains) == {"backbone", "tokenizer_decoder"}
    backbone, decoder = gains["backbone"], gains["tokenizer_decoder"]
    # with the backbone in floats, text and codes are the model's, and the sound is not; and the
    # other way about
    assert backbone.losses.text_kl < 1e-9 < decoder.losses.text_kl
    assert decoder.losses.noise < 1e-4 < backbone.losses.noise
    assert backbone.win > decoder.win > 0.9 and backbone.bytes > 0 < decoder.bytes


def test_a_budget_buys_the_best_first() -> None:
    chosen = recipe.load("int8")
    none = Losses(0, 0, 0, 0)
    gains = [Gain("lm_head", none, 2.0, 60), Gain("backbone", none, 1.0, 50)]
    gains += [Gain("vocoder", none, 0.5, 40), Gain("patch_encoder", none, 0.0, 0)]
    mixed = spend(chosen, gains, 100, "mine")
    floats = [n for n in chosen.components if mixed.components[n] != chosen.components[n]]
    assert floats == ["lm_head", "vocoder"] and mixed.name == "mine"
    assert mixed == replace(
        restored(restored(chosen, "lm_head"), "vocoder"), name="mine", about=mixed.about
    )


def test_the_model_itself_loses_nothing(own: Recording) -> None:
    assert losses(own, own) == Losses(0, 0, 0, 0)
    wrong = {n: np.flip(a, -1) if n.startswith("heard/") else a for n, a in own.arrays.items()}
    assert losses(replace(own, arrays=wrong), own).heard > 0.5
