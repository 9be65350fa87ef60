"""One step of the audio tokenizer's training, and what training the decoder on leaves alone."""

from pathlib import Path

import pytest
import torch
from mimo_edge.scripts.nano.codes import fingerprint
from mimo_edge.scripts.nano.losses import Distances, codec_figures
from mimo_edge.scripts.nano.save import save_audio_tokenizer
from mimo_edge.scripts.nano.train_tokenizer import TokenizerRun, TokenizerTraining
from torch import Tensor


def some_sound(rows: int) -> Tensor:
    """Tones in noise, [B, 4800]: five code frames."""
    time = torch.arange(4800) / 24000
    hertz = torch.rand(rows, 1) * 300 + 100
    return 0.1 * torch.sin(2 * torch.pi * hertz * time) + 3e-4 * torch.randn(rows, 4800)


@pytest.mark.parametrize("decoder_only", [False, True])
def test_a_step_changes_what_it_should(tmp_path: Path, decoder_only: bool) -> None:
    training = TokenizerTraining(TokenizerRun(open_steps=0), decoder_only=decoder_only)
    generator = torch.Generator().manual_seed(0)
    training.codebooks.initialise(torch.randn(300, 192), generator)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    mark = fingerprint(save_audio_tokenizer(training.model, tmp_path / "before"))
    figures = training.step(some_sound(2), generator)
    assert {"mel", "harmonics", "stft", "commitment"} <= set(figures)
    after = training.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    parts = {name.split(".")[0] for name in changed}
    assert parts == ({"decoder"} if decoder_only else {"encoder", "quantizer", "decoder"})
    same = fingerprint(save_audio_tokenizer(training.model, tmp_path / "after")) == mark
    assert same == decoder_only


def test_a_resumed_training_is_the_same_training() -> None:
    def trained(steps: int, training: TokenizerTraining) -> TokenizerTraining:
        for _ in range(steps):
            generator = torch.Generator().manual_seed(training.done)
            torch.manual_seed(training.done)
            training.step(some_sound(2), generator)
        return training

    run = TokenizerRun(open_steps=0)
    whole = trained(2, TokenizerTraining(run))
    resumed = TokenizerTraining(run)
    resumed.load_state_dict(trained(1, TokenizerTraining(run)).state_dict())
    trained(1, resumed)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, msg=name)


def test_a_clip_is_at_no_distance_from_itself() -> None:
    training = TokenizerTraining(TokenizerRun())
    distances, wav = Distances(training.config), some_sound(1)
    assert distances.mel(wav, wav) == distances.harmonics(wav, wav) == distances.stft(wav, wav) == 0
    pair = training.model.decode(training.model.encode(wav[0])), wav[0]
    figures = codec_figures(distances, [pair])
    assert min(figures.values()) > 0
