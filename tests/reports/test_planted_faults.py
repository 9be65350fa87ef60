"""A clean build passes; every planted fault fails the report, which names its stage. A bisection
names the layer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mimo_edge.engines import recipe
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.engines.quantized_graph import scales_of
from mimo_edge.mimo_ref import attention
from mimo_edge.mimo_ref.patch_encoder import PatchEncoder
from mimo_edge.parity.bisect import Bisection
from mimo_edge.parity.judge import Verdict, judge
from mimo_edge.parity.observe import follow
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.reference_side import ReferenceSide
from mimo_edge.parity.taps import TappedPiece
from mimo_edge.parity.thresholds import Thresholds
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.manifest import PIECES
from torch import Tensor

from tests.bundles import exported
from tests.golden import Golden
from tests.reports.conftest import BisectBundle, JudgeBundle
from tests.reports.planted import Planted, late_positions, other_merges


def scaled(planted: Planted) -> None:
    planted.weight("backbone", "backbone.model.layers.1.mlp.down_proj.weight", lambda w: w * 1.05)


def transposed_head(planted: Planted) -> None:
    planted.weight("backbone", "backbone.lm_head.weight", lambda w: np.ascontiguousarray(w.T))


def late(planted: Planted) -> None:
    planted.graph("backbone", late_positions)


def swapped_codebooks(planted: Planted) -> None:
    """Two tables of the patch encoder, of one size, with their contents exchanged."""
    names = [f"patch_encoder.speech_embeddings.{k}.weight" for k in (2, 3)]
    tables: list[np.ndarray] = []
    for name in names:
        planted.weight("patch_encoder", name, lambda w: tables.append(w) or w)
    for name, table in zip(names, reversed(tables), strict=True):
        planted.weight("patch_encoder", name, lambda w, table=table: table)


def scaled_head(planted: Planted) -> None:
    name = "patch_decoder.local_transformer_lm_heads.3.weight"
    planted.weight("patch_decoder", name, lambda w: np.roll(w, 1, axis=0))


def scaled_encoder(planted: Planted) -> None:
    planted.weight("tokenizer_encoder", "encoder.layers.2.fc1.weight", lambda w: w * 1.05)


# what is planted, the stage that the report names first, and the segment that a bisection names:
# the last tap that was right, the first that was not, and a weight between them
BUNDLE_FAULTS: dict[str, tuple[Callable[[Planted], None], str, str | None, str, str]] = {
    "a layer's weights times 1.05": (
        scaled,
        "backbone, prefill",
        "backbone.model.layers.1.post_attention_layernorm",
        "backbone.model.layers.2.input_layernorm",
        "backbone.model.layers.1.mlp.down_proj.weight",
    ),
    "transposed head": (
        transposed_head,
        "backbone, prefill",
        "backbone.model.norm",
        "logits",
        "backbone.lm_head.weight",
    ),
    "position off by one in the decode step": (
        late,
        "backbone, decode step",
        "backbone.model.layers.0.input_layernorm",
        "backbone.model.layers.0.post_attention_layernorm",
        "backbone.model.layers.0.self_attn.q_proj.weight",
    ),
    "swapped codebooks": (
        swapped_codebooks,
        "patch_encoder",
        None,
        "patch_encoder.input_local_transformer.layers.0.input_layernorm",
        "patch_encoder.speech_embeddings.2.weight",
    ),
    "rolled head of the patch decoder": (
        scaled_head,
        "patch_decoder",
        "patch_decoder.local_transformer.norm",
        "scores_3",
        "patch_decoder.local_transformer_lm_heads.3.weight",
    ),
    "a layer of the tokenizer's encoder times 1.05": (
        scaled_encoder,
        "tokenizer_encoder",
        "encoder.layers.2.final_layer_norm",
        "encoder.layers.3.self_attn_layer_norm",
        "encoder.layers.2.fc1.weight",
    ),
}


def test_a_clean_build_passes(clean: Verdict, bisect_bundle: BisectBundle, bundle: Path) -> None:
    assert clean.passed and clean.first_failed is None
    assert all(check.passed is True for check in clean.checks)
    bisected = bisect_bundle(bundle)
    assert bisected.findings == ()
    assert {layer.stage for layer in bisected.layers} == {
        "tokenizer_encoder",
        "patch_encoder",
        "backbone, prefill",
        "backbone, decode step",
        "patch_decoder",
        "tokenizer_decoder",
    }


@pytest.mark.parametrize("name", BUNDLE_FAULTS)
def test_a_fault_in_a_bundle_is_found_and_named(
    name: str,
    tmp_path: Path,
    bundle: Path,
    judge_bundle: JudgeBundle,
    bisect_bundle: BisectBundle,
) -> None:
    plant, stage, after, tap, weight = BUNDLE_FAULTS[name]
    planted = Planted(bundle, tmp_path / "bundle")
    plant(planted)
    verdict = judge_bundle(planted.folder)
    assert not verdict.passed and verdict.first_failed == stage
    finding = bisect_bundle(planted.folder).findings[0]
    assert (finding.stage, finding.after, finding.tap) == (stage, after, tap)
    assert finding.born and weight in finding.weights


def test_another_text_tokenizer_is_named(
    tmp_path: Path, bundle: Path, judge_bundle: JudgeBundle
) -> None:
    planted = Planted(bundle, tmp_path / "bundle")
    planted.file("tokenizer.json", other_merges)
    verdict = judge_bundle(planted.folder)
    assert verdict.first_failed == "text tokenizer"
    # and nothing else is blamed: all else reads the model's own prompts
    assert [c.name for c in verdict.checks if c.passed is False] == ["prompts_differ"]


def causal_patch_encoder(side: ReferenceSide, patch: pytest.MonkeyPatch) -> None:
    module = side.language_model().patch_encoder
    patch.setattr(module, "config", replace(module.config, input_full_attention=False))


def other_rope(side: ReferenceSide, patch: pytest.MonkeyPatch) -> None:
    module = side.language_model().backbone
    patch.setattr(module, "config", replace(module.config, rope_theta=1e4))


def short_window(side: ReferenceSide, patch: pytest.MonkeyPatch) -> None:
    vocoder = side.audio_tokenizer().decoder.vocoder
    left, right = vocoder.config.vocoder_attn_window_size
    changed = replace(vocoder.config, vocoder_attn_window_size=(left - 1, right))
    patch.setattr(vocoder, "config", changed)


def bf16_softmax(side: ReferenceSide, patch: pytest.MonkeyPatch) -> None:
    """Probabilities rounded to bfloat16, in the patch encoder alone."""
    exact = attention.attention

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        heads = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(heads, 1), v.repeat_interleave(heads, 1)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        return scores.softmax(-1).to(torch.bfloat16).to(v.dtype) @ v

    def rounding(self: PatchEncoder, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        patch.setattr(attention, "attention", attend)
        try:
            return attention.attention(q, k, v)
        finally:
            patch.setattr(attention, "attention", exact)

    patch.setattr(PatchEncoder, "attend", rounding)


# faults of a graph as a whole, planted in the reference that then is the build
REFERENCE_FAULTS: dict[
    str, tuple[Callable[[ReferenceSide, pytest.MonkeyPatch], None], str, str]
] = {
    "causal patch encoder": (
        causal_patch_encoder,
        "patch_encoder",
        "patch_encoder.input_local_transformer.layers.0.post_attention_layernorm",
    ),
    "RoPE base of another model": (
        other_rope,
        "backbone, prefill",
        "backbone.model.layers.0.post_attention_layernorm",
    ),
    "vocoder window [39, 10]": (
        short_window,
        "tokenizer_decoder",
        "decoder.vocoder.layers.0.final_layer_norm",
    ),
    "softmax in bf16": (
        bf16_softmax,
        "patch_encoder",
        "patch_encoder.input_local_transformer.layers.0.post_attention_layernorm",
    ),
}


@pytest.mark.parametrize("name", REFERENCE_FAULTS)
def test_a_fault_of_a_whole_graph_is_found_and_named(
    name: str,
    new_reference: Callable[[], ReferenceSide],
    own: Recording,
    bundle: Path,
    thresholds: Thresholds,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant, stage, tap = REFERENCE_FAULTS[name]
    side = new_reference()
    keep_both_models(side, monkeypatch)
    plant(side, monkeypatch)
    verdict = judge(follow(side, own), own, thresholds)
    assert not verdict.passed and verdict.first_failed == stage
    allowed = thresholds.all["layer_snr"].limits["fp32"]
    with OrtBackend(Bundle.open(bundle), threads=1) as backend:
        finding = Bisection(side, backend, own, allowed).run().findings[0]
    assert (finding.stage, finding.tap, finding.born) == (stage, tap, True)


def keep_both_models(side: ReferenceSide, patch: pytest.MonkeyPatch) -> None:
    """A fault is in a loaded model: it must not be loaded again."""
    language, audio = side.language_model(), side.audio_tokenizer()
    patch.setattr(side, "language_model", lambda: language)
    patch.setattr(side, "audio_tokenizer", lambda: audio)


def test_a_wrong_scale_of_one_quantised_tensor_is_named(
    tmp_path: Path, bundle: Path, judge_bundle: JudgeBundle, bisect_bundle: BisectBundle
) -> None:
    """int8 as the recipe makes it passes, and every layer is in tolerance."""
    made = tmp_path / "int8"
    quantize_bundle(Bundle.open(bundle), recipe.load("int8"), made)
    verdict = judge_bundle(made)
    assert verdict.passed and verdict.candidate.identity["precision"] == "int8"
    assert bisect_bundle(made).findings == ()
    planted = Planted(made, tmp_path / "planted")
    weight = "backbone.model.layers.1.self_attn.o_proj.weight"
    planted.weight("backbone", scales_of(weight), lambda scales: scales * 4)
    verdict = judge_bundle(planted.folder)
    assert not verdict.passed and verdict.first_failed == "backbone, prefill"
    finding = bisect_bundle(planted.folder).findings[0]
    assert finding.after == "backbone.model.layers.1.input_layernorm"
    assert finding.tap == "backbone.model.layers.1.post_attention_layernorm"
    assert finding.born and weight in finding.weights


def test_an_error_that_has_arrived_is_not_said_to_be_born(
    reference: ReferenceSide, own: Recording, bundle: Path, tmp_path: Path
) -> None:
    """A limit between the rounding of one layer and that of all: nothing is wrong anywhere."""
    with OrtBackend(Bundle.open(bundle), threads=1) as backend:
        layers = Bisection(reference, backend, own, 0).run().layers
        near = [layer.snr for layer in layers if layer.stage == "tokenizer_encoder"]
        between = (min(near) + near[0]) / 2
        finding = Bisection(reference, backend, own, between).run().findings[0]
    assert finding.stage == "tokenizer_encoder" and finding.alone is not None
    assert finding.snr < between < finding.alone and not finding.born


def test_taps_of_half_precision_are_those_of_float32(golden: Golden, bundle: Path) -> None:
    """There a norm has its weight behind it, and casts around it."""
    half = exported(golden, golden.lm_names[0], "fp16")
    names = []
    for path in (bundle, half):
        with OrtBackend(Bundle.open(path), threads=1) as backend:
            pieces = (TappedPiece(backend, p) for p in PIECES if p != "mel")
            names.append({piece.piece: [tap.name for tap in piece.taps] for piece in pieces})
    assert names[0] == names[1] and all(len(taps) > 5 for taps in names[0].values())


def test_half_precision_is_judged_by_its_own_limits(
    golden: Golden, judge_bundle: JudgeBundle, bisect_bundle: BisectBundle
) -> None:
    half = exported(golden, golden.lm_names[0], "fp16")
    verdict = judge_bundle(half)
    assert verdict.candidate.identity["precision"] == "fp16"
    assert verdict.passed and bisect_bundle(half).findings == ()
