"""The examples of docs/api.md run, in their order, in a folder of the user's own."""

import re
from pathlib import Path

import pytest
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.write import write_audio

import mimo_edge
from tests.bundles import ROOT, exported_nano

PAGE = ROOT / "docs" / "api.md"


def test_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle").symlink_to(exported_nano())
    speech = load_audio(ROOT / "assets" / "utterances" / "listen-01.flac", rate=24000)
    write_audio(tmp_path / "question.wav", speech, 24000)
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"```python\n(.*?)```", page, re.DOTALL))
    assert len(blocks) > 5
    names: dict[str, object] = {}
    for block in blocks:
        line = page.count("\n", 0, block.start(1))  # so that a failure names a line of the page
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "The number is fifty one." and "missing.wav" in said[-1]
    named = set(re.findall(r"mimo_edge\.(\w+)", page)) - {"runtime"}
    assert named <= set(mimo_edge.__all__)
