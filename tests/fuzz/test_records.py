"""Mutations of what reports read: recordings, limits, scores, sets of utterances."""

import json
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.parity.recording import ARRAYS, HEADER, Layout, Recording, Sequence
from mimo_edge.parity.speech_score import UTTERANCES, UtteranceSet
from mimo_edge.parity.thresholds import DEFAULTS, Thresholds
from mimo_edge.parity.word_errors import WordErrors
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.scripts.score import read_score, write_score

from tests.fuzz.mutations import COUNTS, mutated_bytes, mutated_json, try_all

SAMPLED = Sampling(0.9, 50, 0.95)
LISTENED = Sequence("asr clip", "asr", "clip", SAMPLED, SAMPLED, 3, 8, (5, 7), 2)
LAYOUT = Layout(4, 2, 9, (16, 8), (0, 1), 32, 24000)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", [HEADER, ARRAYS])
def test_recordings(tmp_path: Path, name: str, count: int) -> None:
    folder = tmp_path / "recording"
    arrays = {"asr clip/text": np.arange(8), "clip/mel": np.zeros((20, 16), np.float32)}
    Recording({"side": "a bundle"}, "0" * 64, LAYOUT, ("clip",), (LISTENED,), arrays).save(folder)
    mutate = mutated_json if name == HEADER else mutated_bytes
    refused = try_all(folder / name, count // 4, mutate, lambda: Recording.open(folder), 9)
    assert refused > count // 10


@pytest.mark.parametrize("count", COUNTS)
def test_limits(tmp_path: Path, count: int) -> None:
    path = tmp_path / "limits.toml"
    path.write_bytes(DEFAULTS.read_bytes())
    assert try_all(path, count // 4, mutated_bytes, lambda: Thresholds.open(path), 10)


@pytest.mark.parametrize("count", COUNTS)
def test_scores(tmp_path: Path, count: int) -> None:
    path = tmp_path / "score.json"
    write_score(path, {"asr": WordErrors(1, 2, 3, 40), "tts": WordErrors(0, 0, 1, 7)})
    assert try_all(path, count // 4, mutated_json, lambda: read_score(path), 11) > count // 20


@pytest.mark.parametrize("count", COUNTS)
def test_utterances(tmp_path: Path, count: int) -> None:
    heard = {"audio": "a.flac", "text": "Yes."}
    content = {"asr": [heard], "tts": ["No."], "dialogue": [{"audio": "b.flac", "answer": "Two."}]}
    (tmp_path / UTTERANCES).write_text(json.dumps(content))

    def read() -> object:
        return UtteranceSet.open(tmp_path)

    assert try_all(tmp_path / UTTERANCES, count // 4, mutated_json, read, 12) > count // 20
