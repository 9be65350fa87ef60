"""A reference whose weights stay mapped in 16 bits computes what it computes as a whole."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mimo_edge.parity import reference_side, widened
from mimo_edge.parity.observe import Inputs, lead
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.reference_side import ReferenceSide
from safetensors.torch import load_file, save_file

from tests.golden import Golden


def halved(source: Path, target: Path) -> Path:
    """The same checkpoint with its weights in bfloat16, as the released ones are."""
    shutil.copytree(source, target)
    for path in target.glob("*.safetensors"):
        save_file({name: each.bfloat16() for name, each in load_file(path).items()}, path)
    return target


def test_mapped_weights_give_the_same_numbers(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    language = halved(golden.folder / golden.lm_names[0], tmp_path / "language_model")
    audio = halved(golden.folder / "audio_tokenizer", tmp_path / "audio_tokenizer")
    inputs = Inputs({"clip": golden.npz("pipeline.npz")["wav24k"]}, ["Hello."], max_new=4)

    def recorded(whole: int, part: int) -> tuple[ReferenceSide, Recording]:
        monkeypatch.setattr(reference_side, "WHOLE", whole)
        monkeypatch.setattr(widened, "PART", part)
        side = ReferenceSide(language, audio, golden.folder / "text_tokenizer")
        return side, lead(side, inputs)

    _, whole = recorded(1 << 30, 1 << 26)
    mapped, parts = recorded(0, 1000)  # of products of some thousand elements
    held = mapped.language_model().backbone.lm_head.weight
    assert isinstance(held, widened.Widened)
    assert held.as_subclass(torch.Tensor).dtype == torch.bfloat16
    assert parts.arrays.keys() == whole.arrays.keys()
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(parts.arrays[name], array, rtol=0, atol=2e-5, err_msg=name)
