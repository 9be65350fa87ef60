"""A quantised bundle as a checkpoint: with its weights, the reference computes what it computes."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.mimo_ref.tensor_files import TensorFiles
from mimo_edge.parity.bundle_side import BundleSide
from mimo_edge.parity.judge import judge
from mimo_edge.parity.observe import Inputs, follow, lead
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.reference_side import ReferenceSide
from mimo_edge.parity.thresholds import Thresholds
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.scripts.checkpoint.pair_folder import AUDIO_TOKENIZER, LANGUAGE_MODEL
from mimo_edge.scripts.cli import main

from tests.engines.test_quantize import MIXED
from tests.golden import Golden

Dequantize = Callable[..., int]


@pytest.fixture(scope="module")
def quantized(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every scheme and block, in float arithmetic."""
    folder = tmp_path_factory.mktemp("quantized")
    (folder / "mixed.toml").write_text(MIXED, encoding="utf-8")
    quantize_bundle(Bundle.open(bundle), recipe.load(str(folder / "mixed.toml")), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def dequantize(golden: Golden, quantized: Path) -> Dequantize:
    def run(out: Path, *more: str, text: Path = golden.folder / "text_tokenizer") -> int:
        pair = golden.folder / golden.lm_names[0], golden.folder / "audio_tokenizer"
        given = "--checkpoint", str(pair[0]), "--audio-tokenizer", str(pair[1])
        sources = *given, "--text-tokenizer", str(text)
        return main(["dequantize", str(quantized), *sources, "-o", str(out), *more])

    return run


def test_the_reference_with_a_builds_weights_passes_as_a_float_build(
    dequantize: Dequantize, golden: Golden, quantized: Path, own: Recording, tmp_path: Path
) -> None:
    assert dequantize(tmp_path / "pair", "--dtype", "fp32") == 0
    folders = tmp_path / "pair" / LANGUAGE_MODEL, tmp_path / "pair" / AUDIO_TOKENIZER
    clip = golden.npz("pipeline.npz")["wav24k"]
    widened = lead(ReferenceSide(*folders), Inputs({"clip": clip}, ["Hello there."], max_new=8))
    with OrtBackend(Bundle.open(quantized), threads=1) as backend:
        found = [follow(BundleSide(backend), truth) for truth in (widened, own)]
    passed = []
    for recording, truth in zip(found, (widened, own), strict=True):
        exact = replace(recording, identity={**recording.identity, "precision": "fp32"})
        passed.append(judge(exact, truth, Thresholds.open()).passed)
    assert passed == [True, False]  # held against the model itself, it has lost what it has lost


def test_numbers_are_rounded_to_the_checkpoints_own_dtype(
    dequantize: Dequantize, golden: Golden, tmp_path: Path
) -> None:
    assert dequantize(tmp_path / "pair") == 0
    own = TensorFiles(golden.folder / golden.lm_names[0])
    made = TensorFiles(tmp_path / "pair" / LANGUAGE_MODEL)
    assert made.where.keys() >= own.where.keys() - {n for n in own.where if "inv_freq" in n}
    changed = [
        name
        for name in made.where
        if not made.read(name).equal(own.read(name).to(made.read(name).dtype))
    ]
    assert made.read(changed[0]).dtype == own.read(changed[0]).dtype
    assert {name.split(".")[0] for name in changed} >= {"model", "local_transformer"}
    assert "lm_head.weight" not in changed  # which the recipe leaves in floats


def test_what_the_bundle_was_not_made_from_is_refused(
    dequantize: Dequantize, golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(golden.folder / "text_tokenizer", tmp_path / "other")
    with (other / "tokenizer.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert dequantize(tmp_path / "pair", text=other) == 2
    assert "was not made from" in capsys.readouterr().err
    assert not (tmp_path / "pair").exists()
