"""mlx-audio's port of the model, which no one here wrote, judged against the reference."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from mimo_edge.scripts.cli import main

ROOT = Path(__file__).parents[2]
NANO = ROOT / "assets" / "nano"
CLIP = ROOT / "assets" / "utterances" / "ask-01.flac"


@pytest.mark.peer
def test_mlx_audio_agrees_with_the_reference(tmp_path: Path) -> None:
    venv.create(tmp_path / "peer", with_pip=True)
    python = tmp_path / "peer" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    packages = ("mlx[cpu]", "mlx-audio==0.6.*", "-e", f"{ROOT}[cpu]")
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    (tmp_path / "texts.txt").write_text("The cat sees seven birds.\n", encoding="utf-8")
    words = [NANO / "language_model", "--audio-tokenizer", NANO / "audio_tokenizer"]
    words += ["--audio", CLIP, "--text", tmp_path / "texts.txt", "-o", tmp_path / "recording"]
    record = [python, "-m", "mimo_edge.scripts.peers.mlx_audio", *words]
    subprocess.run([str(word) for word in record], check=True)

    checked = ["validate", tmp_path / "recording", "--against", NANO / "language_model"]
    checked += ["--audio-tokenizer", NANO / "audio_tokenizer", "-o", tmp_path / "report"]
    assert main([str(word) for word in checked]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert "mlx-audio" in json.dumps(report)
