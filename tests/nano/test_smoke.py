"""Training from nothing to figures, far too short to be good, but long enough to get better."""

import json
from pathlib import Path

import pytest
from mimo_edge.mimo_ref.weights import load_audio_tokenizer, load_language_model
from mimo_edge.parity.speech_score import UtteranceSet
from mimo_edge.runtime.bundle.manifest import MANIFEST
from mimo_edge.scripts.nano.__main__ import main
from mimo_edge.scripts.nano.plots import read_log
from mimo_edge.scripts.nano.utterances import ASK, LISTEN


@pytest.mark.slow
def test_a_short_training_runs_through_and_resumes(tmp_path: Path) -> None:
    work = tmp_path / "work"
    sizes = ["--sentences", "200", "--held-out", "60", "--readings", "1", "--own-readings", "1"]
    sizes += ["--loose", "40", "--own-loose", "40", "--count", "4"]
    lengths = ["--tokenizer-steps", "300", "--lm-steps", "120", "--decoder-steps", "20"]
    command = ["all", "--work", str(work), *sizes, *lengths]
    assert main([*command, "--minutes", "0.7"]) == 1  # interrupted within the tokenizer
    assert main(command) == 0

    tokenizer = read_log(work / "tokenizer")
    steps = [step for step, _ in tokenizer["mel"]]
    assert steps == sorted(set(steps)), "the resumed run went on where the first one stopped"
    assert steps[-1] == 300
    assert tokenizer["mel"][-1][1] < 0.7 * tokenizer["mel"][0][1]
    language_model = read_log(work / "language_model")
    assert language_model["text"][-1][1] < 0.7 * language_model["text"][0][1]

    load_audio_tokenizer(work / "checkpoint" / "audio_tokenizer")
    load_language_model(work / "checkpoint" / "language_model")
    figures = json.loads((work / "figures.json").read_text(encoding="utf-8"))
    assert figures["codec"]["8"]["mel"] < figures["codec"]["1"]["mel"] < 1.5
    assert set(figures["asr"]) == {"held_out", "new_voice", "own"}
    assert figures["dialogue"]["sentences"] == 4
    assert (work / "bundle" / MANIFEST).is_file(), "judged as its users run it"
    assert main(["utterances", "--work", str(work)]) == 0
    utterances = UtteranceSet.open(work / "utterances")
    assert len(utterances.listen) == LISTEN and len(utterances.ask) == ASK
