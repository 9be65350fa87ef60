"""Every task from the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from runtime.bundle import Bundle
from scripts.cli import COMMANDS
from scripts.run import TASKS
from tests.cli.conftest import CLIP, Outcome

Run = Callable[..., Outcome]
FEW = ("--max-new", 6, "--json")


def task_words(task: str, bundle: Path, out: Path) -> tuple[object, ...]:
    return {
        "asr": ("asr", bundle, CLIP),
        "tts": ("tts", bundle, "Hello.", "-o", out),
        "understand": ("understand", bundle, CLIP, "What is it?", "--thinking"),
        "dialogue": ("dialogue", bundle, CLIP, "-o", out, "--system-prompt", "Be kind."),
        "speech-to-text": ("speech-to-text", bundle, CLIP, "--thinking"),
        "chat": ("chat", bundle, "Hello"),
        "in-context": (
            *("in-context", bundle, CLIP, "--instruction", "Repeat.", "-o", out),
            *("--example", CLIP, CLIP, "What is the weather like today?"),
        ),
    }[task]


@pytest.mark.parametrize("task", TASKS)
def test_tasks(mimo_edge: Run, bundle: Path, tmp_path: Path, task: str) -> None:
    """Alone on stdout: one JSON object; the sound is as long as it says."""
    out = tmp_path / "out.wav"
    done = mimo_edge("run", *task_words(task, bundle, out), *FEW)
    assert done.code == 0, done.err
    raw = json.loads(done.out)
    assert raw["task"] == task and raw["timings"]["patches"] <= 6
    assert (raw["audio"] is not None) == out.exists()
    if out.exists():
        samples = Bundle.open(bundle, verify=False).model.samples_per_frame
        assert soundfile.info(out).frames == raw["frames"] * samples
        assert raw["timings"]["first_audio"] > 0


def test_seeds(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    def sound(name: str, seed: int) -> bytes:
        path = tmp_path / name
        words = ("run", "tts", bundle, "Hello there.", "-o", path, "--max-new", 12)
        assert mimo_edge(*words, "--seed", seed).code == 0
        return path.read_bytes()

    assert sound("a.wav", 1) == sound("b.wav", 1) != sound("c.wav", 2)


def test_stream_to_a_file_and_to_stdout(bundle: Path, tmp_path: Path) -> None:
    words = ["run", "tts", str(bundle), "Hello there.", "--max-new", "24", "--stream"]
    words += ["--seed", "1", "--right-overlap", "4", "--json", "-o"]
    command = [sys.executable, "-m", "scripts.cli", *words]
    path = tmp_path / "x.wav"
    to_file = subprocess.run([*command, path], capture_output=True, check=True)
    frames = json.loads(to_file.stdout)["frames"]
    piped = subprocess.run([*command, "-"], capture_output=True, check=True)
    assert piped.stdout[:4] == b"RIFF" and json.loads(piped.stderr)["frames"] == frames
    samples = Bundle.open(bundle, verify=False).model.samples_per_frame
    assert len(piped.stdout) == 44 + 2 * samples * frames
    assert path.read_bytes()[44:] == piped.stdout[44:]


def test_history_goes_on(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    history = tmp_path / "talk.npz"
    words = ("run", "chat", bundle, "Hello", "--history", history, "--max-new", 4)
    assert mimo_edge(*words).code == 0
    first = history.stat().st_size
    assert mimo_edge(*words).code == 0 and history.stat().st_size > first


def test_conversation_file(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    (tmp_path / "clip.flac").write_bytes(CLIP.read_bytes())
    turns = [
        {"role": "user", "audio": "clip.flac"},
        {"role": "assistant", "text": "Sunny.", "audio": "clip.flac"},
        {"role": "user", "audio": "clip.flac"},
    ]
    path.write_text(json.dumps({"messages": turns, "system_prompt": "Be kind."}))
    out = ("-o", tmp_path / "x.wav")
    assert mimo_edge("run", "dialogue", bundle, "--conversation", path, *out, *FEW).code == 0


def test_help_teaches(mimo_edge: Run) -> None:
    for command in COMMANDS:
        done = mimo_edge(command, "--help")
        assert done.code == 0 and "usage: mimo-edge" in done.out
    for task in TASKS:
        done = mimo_edge("run", task, "--help")
        assert done.code == 0 and "--seed" in done.out and "default" in done.out


def test_inspect_and_doctor(mimo_edge: Run, bundle: Path) -> None:
    done = mimo_edge("inspect", bundle)
    assert done.code == 0 and "patch_decoder" in done.out and "-->" in done.out
    assert json.loads(mimo_edge("inspect", bundle, "--json").out)["schema"] == 1
    findings = json.loads(mimo_edge("doctor", "--json").out)
    assert {f["what"]: f["works"] for f in findings}["run on the CPU (ort-cpu)"]


def test_bench(mimo_edge: Run, bundle: Path) -> None:
    done = mimo_edge("bench", bundle, "--runs", 2, "--rows", 2, "--json")
    raw = json.loads(done.out)
    assert done.code == 0 and len(raw["stages"]) == 6 and 0 < raw["overhead_share"] < 1
