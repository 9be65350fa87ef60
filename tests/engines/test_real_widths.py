"""What rounding costs at the widths of the released model, where channels stick out.

Two layers of random weights, all of one deviation; in each norm one channel in 128 is made eight
times as large as the others. Slow: `pytest -m slow -s tests/engines/test_real_widths.py` prints
the figures of docs/quantization.md.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.export.exporter import export_bundle
from mimo_edge.export.sources import Sources
from mimo_edge.scripts.checkpoint import random_weights
from mimo_edge.scripts.checkpoint.presets import PRESETS, Preset
from mimo_edge.scripts.make_checkpoint import AUDIO_TOKENIZER, LANGUAGE_MODEL, make_checkpoint

from tests.engines.outliers import divergence, observed, plant, texts

pytestmark = pytest.mark.slow
WIDTHS = (
    *("hidden_size", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
SHARE, TIMES = 128, 8
RECIPE = """
name = "{method}"
about = "the backbone in int4"
[components.backbone]
weights = {{ scheme = "int4", block = 128, method = "{method}" }}
"""


def wide() -> Preset:
    """The tiny model with a backbone as wide as the real one, of two layers."""
    tiny, real = PRESETS["tiny"].cut(2), PRESETS["real"].language_model
    widths = {name: real[name] for name in WIDTHS}
    return replace(tiny, language_model=tiny.language_model | widths | {"vocab_size": 4096})


def test_scaling_beats_plain_rounding_at_real_widths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # scores that are less peaked than is usual here: rounding alone would turn most choices
    monkeypatch.setattr(random_weights, "_GAINS", ())
    make_checkpoint(tmp_path / "checkpoint", wide())
    pair = [tmp_path / "checkpoint" / name for name in (LANGUAGE_MODEL, AUDIO_TOKENIZER)]
    export_bundle(Sources.open(*pair, pair[0]), tmp_path / "floats", "fp32")
    channels = wide().language_model["hidden_size"] // SHARE
    bundle = plant(tmp_path / "floats", tmp_path / "planted", channels, TIMES)
    calibration = observed(bundle, texts(bundle.model, 4, 32, seed=1))
    folders = []
    for method in ("nearest", "search", "awq"):
        (tmp_path / f"{method}.toml").write_text(RECIPE.format(method=method), encoding="utf-8")
        chosen = recipe.load(str(tmp_path / f"{method}.toml"))
        folders.append(tmp_path / method)
        known = calibration if chosen.calibrated else None
        quantize_bundle(bundle, chosen, folders[-1], calibration=known)
    nearest, search, awq = divergence(bundle, folders, texts(bundle.model, 4, 32, seed=2))
    print(f"\nKL of text: nearest {nearest:.4f}, search {search:.4f}, awq {awq:.4f}")
    assert nearest < 0.5, "outliers too great to say anything"
    assert awq < 0.8 * min(nearest, search)
