"""One writer for each output: whoever comes second is refused at once, before any work."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mimo_edge.runtime.bundle.lock import locked

from tests.bundles import ROOT
from tests.cli.conftest import CLIP, Outcome
from tests.golden import Golden

Run = Callable[..., Outcome]
CHAT = ("run", "chat", "{bundle}", "Hi")
COMMANDS = {
    "export": (
        "export",
        "{lm}",
        "--audio-tokenizer",
        "{audio}",
        "--text-tokenizer",
        "{text}",
        "-o",
    ),
    "quantize": ("quantize", "{bundle}", "--recipe", "int8", "-o"),
    "make-checkpoint": ("make-checkpoint", "--preset", "tiny"),
    "record": ("record", "{bundle}", "--audio", CLIP, "-o"),
    "score": ("score", "{bundle}", "--set", ROOT / "assets" / "utterances", "--record"),
    "history": (*CHAT, "--history"),
    "sound": ("run", "tts", "{bundle}", "Hi", "-o"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_one_is_refused(
    mimo_edge: Run, golden: Golden, bundle: Path, tmp_path: Path, name: str
) -> None:
    places = {
        "bundle": bundle,
        "lm": golden.folder / golden.lm_names[0],
        "audio": golden.folder / "audio_tokenizer",
        "text": golden.folder / "text_tokenizer",
    }
    output = tmp_path / ("talk.wav" if name == "sound" else "output")
    words = [str(word).format(**places) for word in COMMANDS[name]]
    with locked(output):
        done = mimo_edge(*words, output)
        done.refused(2, f"{output.name} is being written by process", "choose another name")
