"""`mimo-edge score`: what it counts, what it records, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mimo_edge.parity.speech_score import UTTERANCES
from mimo_edge.runtime.audio.read import load_audio

from tests.cli.conftest import CLIP, Outcome

Run = Callable[..., Outcome]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A set with one utterance of each kind."""
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(CLIP, folder / "a.flac")
    index = {
        "asr": [{"audio": "a.flac", "text": "What is the weather like today?"}],
        "tts": ["Turn on the light, please."],
        "dialogue": [{"audio": "a.flac", "answer": "It is sunny."}],
    }
    (folder / UTTERANCES).write_text(json.dumps(index), encoding="utf-8")
    return folder


def test_it_counts_records_and_compares(
    mimo_edge: Run, bundle: Path, few: Path, tmp_path: Path
) -> None:
    own, wavs = tmp_path / "own.json", tmp_path / "wavs"
    done = mimo_edge(
        "score", bundle, "--set", few, "--json", "--record", own, "--wavs", wavs, "--stream"
    )
    assert done.code == 0, done.err
    score = json.loads(done.out)
    assert [score[task]["words"] for task in ("asr", "tts", "dialogue")] == [6, 5, 3]
    assert [u["wanted"] for u in score["utterances"]][1] == "Turn on the light, please."
    assert score["asr"]["edits"] > 0, "random weights do not hear"
    for wav in wavs.iterdir():
        assert len(load_audio(wav, rate=24000)) > 0

    again = mimo_edge("score", bundle, "--set", few, "--against", own, "--stream")
    assert again.code == 0, again.err
    assert "words wrong" in again.out and "wanted 'What is the weather like today?'" in again.out

    recorded = json.loads(own.read_text(encoding="utf-8"))
    recorded["asr"]["edits"] = 0
    own.write_text(json.dumps(recorded), encoding="utf-8")
    worse = mimo_edge("score", bundle, "--set", few, "--against", own)
    assert worse.code == 5 and "worse than the model's own score: asr" in worse.err


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not a set"),
        ("[]", "is not a set"),
        ('{"asr": [], "tts": [], "dialogue": []}', "holds no utterance"),
        ('{"asr": [{"audio": "a.flac"}], "tts": [], "dialogue": []}', "'text'"),
        ('{"asr": [], "tts": "one", "dialogue": []}', '"tts"'),
        ('{"asr": [], "tts": [1], "dialogue": []}', '"tts"'),
    ],
)
def test_a_bad_set_is_refused(
    mimo_edge: Run, bundle: Path, few: Path, text: str, part: str
) -> None:
    (few / UTTERANCES).write_text(text, encoding="utf-8")
    mimo_edge("score", bundle, "--set", few).refused(2, UTTERANCES, part)


def test_what_is_not_there_is_refused(mimo_edge: Run, bundle: Path, few: Path) -> None:
    mimo_edge("score", bundle, "--set", few / "no").refused(2, UTTERANCES, "is not there")
    mimo_edge("score", bundle, "--set", few, "--against", few / "no").refused(2, "no")
    (few / "a.flac").unlink()
    mimo_edge("score", bundle, "--set", few).refused(2, "a.flac")


@pytest.mark.parametrize("text", ["", "[]", '{"tts": 1}', '{"tts": {"edits": "x"}}', "{}"])
def test_a_score_that_is_none_is_refused(
    mimo_edge: Run, bundle: Path, few: Path, text: str
) -> None:
    (few / "own.json").write_text(text, encoding="utf-8")
    mimo_edge("score", bundle, "--set", few, "--against", few / "own.json").refused(
        2, "own.json", "--record"
    )


def test_a_score_of_another_set_is_refused(mimo_edge: Run, bundle: Path, few: Path) -> None:
    other = {"tts": {"edits": 0, "words": 7, "right": 1, "utterances": 1}}
    (few / "own.json").write_text(json.dumps(other), encoding="utf-8")
    done = mimo_edge("score", bundle, "--set", few, "--against", few / "own.json")
    assert done.code == 2 and "another set" in done.err


@pytest.mark.parametrize("option", ["--wavs", "--record"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    mimo_edge: Run, few: Path, tmp_path: Path, option: str
) -> None:
    """The bundle is not even looked for."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    wrong = tmp_path / ("file" if option == "--wavs" else "folder")
    for place in (wrong, tmp_path / "file" / "below"):
        done = mimo_edge("score", tmp_path / "none", "--set", few, option, place)
        done.refused(2, f"{option} ", "cannot be written")
