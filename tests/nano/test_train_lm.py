"""Training of the language model: what it learns from, and that it goes on as it stopped."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mimo_edge.scripts.nano.lessons import Lesson, Reading, Teacher
from mimo_edge.scripts.nano.namers import HEARD_LAYER, SAID_LAYER
from mimo_edge.scripts.nano.sizes import CODEBOOKS
from mimo_edge.scripts.nano.text_tokenizer import write_tokenizer
from mimo_edge.scripts.nano.train_lm import LanguageModelRun, LanguageModelTraining


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> list[Lesson]:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    teacher, rng = Teacher(folder), np.random.default_rng(0)

    def codes() -> np.ndarray:
        return rng.integers(0, np.array(CODEBOOKS)[:, None], (len(CODEBOOKS), 24))

    def reading(text: str) -> Reading:
        return Reading(text, codes(), np.array([0.3, 0.5, 0.9]))

    return [
        teacher.tts(reading("The cup is"), random.Random(0)),
        teacher.asr(reading("One two three."), random.Random(1)),
        teacher.dialogue(reading("What is it?"), reading("It is red.")),
    ]


def test_a_resumed_training_takes_the_very_same_steps(lessons: list[Lesson]) -> None:
    run = LanguageModelRun(steps=10)
    whole, halted, resumed = (LanguageModelTraining(run) for _ in range(3))
    for training in (whole, halted):
        training.step(lessons)
        training.step(lessons)
    resumed.load_state_dict(halted.state_dict())
    first, second = whole.step(lessons), resumed.step(lessons)
    assert first == second
    assert first.keys() >= {"text", "codes", "first", "heard", "said", "gradient"}


@pytest.mark.parametrize(("name", "taught"), [("heard", HEARD_LAYER + 1), ("said", SAID_LAYER + 1)])
def test_words_are_named_from_within_the_backbone(
    lessons: list[Lesson], name: str, taught: int
) -> None:
    training = LanguageModelTraining(LanguageModelRun(steps=10))
    _, parts = training.losses(lessons)
    parts[name].backward()
    learns = [
        any(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
        for layer in training.model.backbone.model.layers
    ]
    assert learns == [True] * taught + [False] * (6 - taught)
    for _ in range(12):
        last = training.step(lessons)
    assert last[name] < float(parts[name].detach()) - 0.05


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="a C++ compiler is missing")
def test_compiled_layers_learn_the_same(
    lessons: list[Lesson], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain, compiled = (
        LanguageModelTraining(LanguageModelRun(steps=10, compiled=compiled))
        for compiled in (False, True)
    )
    for training in (plain, compiled):
        loss, _ = training.losses(lessons)
        loss.backward()
    pairs = zip(plain.model.parameters(), compiled.model.parameters(), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
