"""`mimo-edge score` refuses before the long work what would fail after it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mimo_edge.parity.speech_score import UTTERANCES, UtteranceSet
from mimo_edge.scripts import score
from mimo_edge.scripts.cli import main

Refused = Callable[..., str]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A set of two texts; no bundle is ever opened on it."""
    index = {"asr": [], "tts": ["Turn on the light.", "It is nine."], "dialogue": []}
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / UTTERANCES).write_text(json.dumps(index), encoding="utf-8")
    return tmp_path / "set"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """What is said when nothing may be judged."""

    class Unopened:
        def open(*_: object, **__: object) -> None:
            raise AssertionError("the bundle was opened")

    monkeypatch.setattr(score, "MimoAudio", Unopened)

    def run(*words: object) -> str:
        assert main(["score", "bundle", *map(str, words)]) == 2
        return capsys.readouterr().err

    return run


def test_words_that_are_said(few: Path) -> None:
    said = UtteranceSet.open(few).said()
    assert list(said) == ["tts"] and said["tts"].words == said["tts"].edits == 7


@pytest.mark.parametrize(("task", "words"), [("tts", 6), ("asr", 7)])
def test_a_score_of_another_set(refused: Refused, few: Path, task: str, words: int) -> None:
    own = {task: {"edits": 0, "words": words, "right": 1, "utterances": 1}}
    (few / "own.json").write_text(json.dumps(own), encoding="utf-8")
    said = refused("--set", few, "--against", few / "own.json")
    assert f"another set of utterances: {words} words in '{task}'" in said


def test_a_record_that_cannot_be_written(
    refused: Refused, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = few / UTTERANCES
    for path in (few, file / "own.json", file / "deep" / "own.json"):
        assert f"--record {path} cannot be written" in refused("--set", few, "--record", path)
    monkeypatch.setattr(score.os, "access", lambda path, mode: Path(path) != few)
    assert "cannot be written" in refused("--set", few, "--record", few / "new" / "own.json")
    assert [path.name for path in few.iterdir()] == [UTTERANCES]


def test_an_installed_package_has_no_utterances(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "UTTERANCES", tmp_path / "assets" / "utterances")
    said = refused()
    assert "run from the repository, or give --set" in said
