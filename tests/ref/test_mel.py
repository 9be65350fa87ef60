import torch
from mimo_edge.mimo_ref.mel import log_mel, mel_filters, resample
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.parity import tolerances

from tests import check
from tests.golden import Golden


def test_filters(golden: Golden, tokenizer: AudioTokenizer) -> None:
    expected = golden.npz("mel.npz")["mel_fb"]
    assert tolerances.difference(mel_filters(tokenizer.config), expected) < 1e-6


def test_resample(golden: Golden, tokenizer: AudioTokenizer, resample_case: str) -> None:
    arrays = golden.npz("mel.npz")
    rate = int(resample_case.removeprefix("rs"))
    wav = resample(
        torch.tensor(arrays[f"{resample_case}.wav"]), rate, tokenizer.config.sampling_rate
    )
    check.close(wav, arrays[f"{resample_case}.wav24k"], tolerances.RESAMPLED, resample_case)


def test_log_mel(golden: Golden, tokenizer: AudioTokenizer, mel_case: str) -> None:
    arrays = golden.npz("mel.npz")
    wav = arrays.get(f"{mel_case}.wav24k", arrays[f"{mel_case}.wav"])
    mel = log_mel(torch.tensor(wav), tokenizer.config)
    check.mel_close(mel.T, arrays[f"{mel_case}.logmel"], mel_case)


def test_speech(golden: Golden, tokenizer: AudioTokenizer) -> None:
    arrays = golden.npz("mel_speech.npz")
    rate = tokenizer.config.sampling_rate
    wav = resample(torch.tensor(arrays["wav"]), int(arrays["sr"]), rate)
    check.close(wav, arrays["wav24k"], tolerances.RESAMPLED, "wav24k")
    check.mel_close(log_mel(wav, tokenizer.config).T, arrays["logmel"], "logmel")
