"""Level 2: mel, tokenizer encoder and tokenizer decoder on ONNX Runtime against the goldens."""

import numpy as np
from mimo_edge.parity import tolerances
from mimo_edge.runtime.backends.ort import OrtBackend

from tests import check
from tests.golden import Golden


def test_mel(golden: Golden, backend: OrtBackend, mel_case: str) -> None:
    arrays = golden.npz("mel.npz")
    wav = arrays.get(f"{mel_case}.wav24k", arrays[f"{mel_case}.wav"])
    check.mel_close(backend.mel(wav).T, arrays[f"{mel_case}.logmel"], mel_case)


def test_mel_of_speech(golden: Golden, backend: OrtBackend) -> None:
    arrays = golden.npz("mel_speech.npz")
    check.mel_close(backend.mel(arrays["wav24k"]).T, arrays["logmel"], "logmel")


def test_encoder_rows(golden: Golden, backend: OrtBackend, encoder_case: str) -> None:
    """Every row of a batch gives the codes that the sequence gives alone."""
    arrays = golden.npz("encoder.npz")
    names = golden.info["encoder_cases"][encoder_case]
    mels = [arrays[f"{name}.mel"] for name in names]
    batch = np.full((len(mels), max(map(len, mels)), mels[0].shape[1]), 7.0, np.float32)
    for row, mel in zip(batch, mels, strict=True):
        row[: len(mel)] = mel
    lengths = np.array([len(m) for m in mels])
    session = backend.session("tokenizer_encoder")
    codes = session.run(None, {"mel": batch, "lengths": lengths})[0]
    for row, name in zip(codes, names, strict=True):
        expected = arrays[f"{name}.codes"]
        check.equal(row[:, : expected.shape[1]], expected, name)


def test_decoder(golden: Golden, backend: OrtBackend, decoder_case: str) -> None:
    arrays = golden.npz("decoder.npz")
    codes = arrays[f"{decoder_case}.codes"]
    wav = backend.decode(codes[None], np.array([codes.shape[1]]))
    check.close(wav[:, None], arrays[f"{decoder_case}.wav"], tolerances.AUDIO, decoder_case)


def test_decoder_rows(golden: Golden, backend: OrtBackend) -> None:
    """Unequal rows, with rubbish beyond their ends, sound as alone and then fall silent."""
    arrays = golden.npz("decoder.npz")
    n_q = backend.bundle.model.n_q
    cases = [c for c in golden.decoder_cases if len(arrays[f"{c}.codes"]) == n_q]
    lengths = np.array([arrays[f"{c}.codes"].shape[1] for c in cases])
    batch = np.full((len(cases), n_q, lengths.max()), 3)
    for row, case in zip(batch, cases, strict=True):
        row[:, : arrays[f"{case}.codes"].shape[1]] = arrays[f"{case}.codes"]
    for wav, case in zip(backend.decode(batch, lengths), cases, strict=True):
        alone = arrays[f"{case}.wav"][0, 0]
        check.close(wav[: len(alone)], alone, tolerances.AUDIO, case)
        assert not wav[len(alone) :].any()
