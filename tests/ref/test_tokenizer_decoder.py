import pytest
import torch
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.parity import tolerances

from tests import check
from tests.golden import Golden
from tests.ref.hooks import record_outputs


def test_decoder(golden: Golden, tokenizer: AudioTokenizer, decoder_case: str) -> None:
    arrays = golden.npz("decoder.npz")
    codes = torch.tensor(arrays[f"{decoder_case}.codes"])
    hidden = tokenizer.quantizer.decode(codes[None])[0]
    check.close(hidden, arrays[f"{decoder_case}.hidden"], tolerances.DECODER, "hidden")
    wav = tokenizer.decode(codes)[None, None]
    check.close(wav, arrays[f"{decoder_case}.wav"], tolerances.AUDIO, "wav")


def test_intermediates(golden: Golden, tokenizer: AudioTokenizer) -> None:
    arrays = golden.npz("decoder.npz")
    cases = [c for c in golden.decoder_cases if f"{c}.i.dconv1" in arrays]
    assert cases
    decoder = tokenizer.decoder
    stages = {
        "dconv1": decoder.dconv1,
        "layer0": decoder.layers[0],
        "layer_norm": decoder.layer_norm,
        "coarse_mel": decoder.dconv2,
        "voc_embed": decoder.vocoder.embeddings,
        "voc_layer0": decoder.vocoder.layers[0],
        "voc_layer_norm": decoder.vocoder.layer_norm,
        "head_out": decoder.vocoder.head.out,
    }
    for case in cases:
        with record_outputs(stages) as seen:
            tokenizer.decode(torch.tensor(arrays[f"{case}.codes"]))
        for name, output in seen.items():
            expected = arrays[f"{case}.i.{name}"]  # some are packed, and head_out is cut short
            output = output[0, : expected.shape[-2]].reshape(expected.shape)
            check.close(output, expected, tolerances.DECODER, f"{case}.{name}")


def unpack(golden: Golden) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    arrays = golden.npz("decoder.npz")
    lengths = torch.tensor(arrays["pack.lens"])
    codes = list(torch.tensor(arrays["pack.codes"]).split(lengths.tolist(), dim=1))
    batch = torch.nn.utils.rnn.pad_sequence([c.T for c in codes], batch_first=True).transpose(1, 2)
    return batch, lengths, codes


def test_upstream_batch(golden: Golden, tokenizer: AudioTokenizer) -> None:
    batch, lengths, _ = unpack(golden)
    valid = torch.arange(batch.shape[-1]) < lengths[:, None]
    states = tokenizer.quantizer.decode(batch) * valid[..., None]
    wav = tokenizer.decoder(states, lengths, upstream_batch=True)[:, None]
    check.close(wav, golden.npz("decoder.npz")["pack.wav"], tolerances.AUDIO, "pack.wav")


def test_rows_equal_rows_alone(golden: Golden, tokenizer: AudioTokenizer) -> None:
    batch, lengths, codes = unpack(golden)
    wavs = tokenizer.decoder(tokenizer.quantizer.decode(batch), lengths)
    for wav, alone in zip(wavs, codes, strict=True):
        expected = tokenizer.decode(alone)
        check.close(wav[: len(expected)], expected.numpy(), tolerances.AUDIO, "row")
        assert not wav[len(expected) :].any()


def test_pieces_of_a_long_answer(
    tokenizer: AudioTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimo_edge.mimo_ref.model.PIECE_CODE_FRAMES", 10)
    config = tokenizer.config
    codes = torch.randint(0, min(config.codebook_size), (config.num_quantizers, 23))
    wav = tokenizer.decode(codes)
    parts = [tokenizer.decode(part) for part in codes.split(10, dim=1)]
    assert torch.equal(wav, torch.cat(parts))
