import numpy as np
import pytest
import torch
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.parity import tolerances
from torch import Tensor, nn

from tests import check
from tests.golden import Golden
from tests.ref.hooks import record_outputs


def pack(arrays: dict[str, np.ndarray], names: list[str]) -> tuple[Tensor, Tensor]:
    """The mels of a case as one padded batch, and their lengths."""
    mels = [torch.tensor(arrays[f"{name}.mel"]) for name in names]
    return nn.utils.rnn.pad_sequence(mels, batch_first=True), torch.tensor([len(m) for m in mels])


def packed(rows: Tensor, lengths: Tensor) -> Tensor:
    return torch.cat([row[:n] for row, n in zip(rows, lengths.tolist(), strict=True)])


def test_encoder(golden: Golden, tokenizer: AudioTokenizer, encoder_case: str) -> None:
    arrays = golden.npz("encoder.npz")
    names = golden.info["encoder_cases"][encoder_case]
    mel, lengths = pack(arrays, names)
    encoder, quantizer = tokenizer.encoder, tokenizer.quantizer
    code_lengths = encoder.code_length(lengths)
    check.equal(lengths, arrays[f"{encoder_case}.lens"], "lens")
    check.equal(
        encoder.conv_length(lengths), arrays[f"{encoder_case}.conv_out_len"], "conv_out_len"
    )
    check.equal(code_lengths, arrays[f"{encoder_case}.code_len"], "code_len")

    hidden = encoder(mel, lengths, upstream_batch=True)
    expected = arrays[f"{encoder_case}.hidden_packed"]
    check.close(packed(hidden, code_lengths), expected, tolerances.ENCODER, "hidden")

    codes = quantizer.encode(hidden)
    packed_codes = torch.cat([c[:, :n] for c, n in zip(codes, code_lengths, strict=True)], dim=1)
    check.equal(packed_codes, arrays[f"{encoder_case}.codes"], "codes")
    quantized = quantizer.decode(codes)
    expected = arrays[f"{encoder_case}.hidden_q_packed"]
    check.close(packed(quantized, code_lengths), expected, tolerances.ENCODER, "hidden_q")
    # upstream's padded output is the quantised state, zero beyond each row's end
    valid = torch.arange(quantized.shape[1]) < code_lengths[:, None]
    for name, rows in (("hidden_padded", hidden), ("hidden_q_padded", quantized)):
        if f"{encoder_case}.{name}" in arrays:
            expected = arrays[f"{encoder_case}.{name}"]
            check.close(rows * valid[..., None], expected, tolerances.ENCODER, name)


def test_intermediates(golden: Golden, tokenizer: AudioTokenizer) -> None:
    """Each stage of one case, so that a failure says where the computation parts."""
    arrays = golden.npz("encoder.npz")
    encoder = tokenizer.encoder
    skip = tokenizer.config.encoder_skip_layer_id
    stages = {
        "conv1": encoder.conv1,
        "conv2": encoder.conv2,
        "layer0": encoder.layers[0],
        "layer_norm": encoder.layer_norm,
        "down_conv": encoder.down_sample_layer[0],
    }
    if skip is not None:
        stages["skip_layer"] = encoder.layers[skip - 1]
    cases = [c for c in golden.encoder_cases if f"{c}.i.conv1" in arrays]
    assert cases
    for case in cases:
        mel, lengths = pack(arrays, golden.info["encoder_cases"][case])
        with record_outputs(stages) as seen:
            encoder(mel, lengths, upstream_batch=True)
        for name, output in seen.items():
            if name in ("layer0", "skip_layer", "layer_norm"):
                output = packed(output, encoder.conv_length(lengths))
            expected = arrays[f"{case}.i.{name}"]
            check.close(output, expected, tolerances.ENCODER, f"{case}.{name}")


def test_rows_equal_rows_alone(golden: Golden, tokenizer: AudioTokenizer) -> None:
    """The default: a row of a batch gets what it would get alone, whatever its neighbours are."""
    arrays = golden.npz("encoder.npz")
    batches = [names for names in golden.info["encoder_cases"].values() if len(names) > 1]
    for names in batches:
        mel, lengths = pack(arrays, names)
        rows = tokenizer.encoder(mel, lengths)
        for row, name in zip(rows, names, strict=True):
            alone = arrays[f"{name}.hidden_packed"]
            check.close(row[: len(alone)], alone, tolerances.ENCODER, name)
            assert not row[len(alone) :].any()


def test_long_audio_segments(tokenizer: AudioTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are independent; the upstream option batches them, which changes an odd last one."""
    monkeypatch.setattr("mimo_edge.mimo_ref.model.SEGMENT_MEL_FRAMES", 40)
    mel = torch.randn(
        40 + 40 + 17, tokenizer.config.n_mels, generator=torch.Generator().manual_seed(0)
    )
    codes = tokenizer.encode_mel(mel)
    alone = [tokenizer.encode_mel(part) for part in mel.split(40)]
    assert torch.equal(codes, torch.cat(alone, dim=1))
    upstream = tokenizer.encode_mel(mel, upstream_batch=True)
    assert torch.equal(upstream[:, :20], codes[:, :20]) and not torch.equal(upstream, codes)
