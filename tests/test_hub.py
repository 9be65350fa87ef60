"""Checkpoints by their id on the Hub: from a cache that is made by hand, without any network."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, InputError
from mimo_edge.scripts import export, hub

ID = "XiaomiMiMo/MiMo-Audio-7B-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import sys
from mimo_edge.runtime.bundle.errors import MimoError
from mimo_edge.scripts.hub import folder_of
try:
    print(folder_of(sys.argv[1]))
except MimoError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def cached(home: Path, name: str, *files: str) -> Path:
    """A repository in the Hub's cache, as its own client lays it out."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in files:
        (snapshot / file).write_text("{}")
    return snapshot


def folder_of(home: Path, given: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its settings once."""
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CODE, given]
    return subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, check=False)


def test_from_the_cache(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, ID, "config.json", "model.safetensors", "tokenizer.json")
    done = folder_of(tmp_path, ID)
    assert (done.stdout, done.stderr) == (f"{snapshot}\n", "")


def test_what_the_cache_lacks_offline(tmp_path: Path) -> None:
    """Nothing of it, or not all of its weights: one sentence, with the way out."""
    snapshot = cached(tmp_path, ID, "config.json", "model-1.safetensors")
    index = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    (snapshot / hub.INDEX).write_text(index)
    for given in (ID, "nobody/nothing"):
        done = folder_of(tmp_path, given)
        assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
        assert done.stderr.startswith(f"InputError: there is no folder {given}")
        assert "or give a folder" in done.stderr


def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ID).mkdir(parents=True)
    assert not hub.is_id(ID) and hub.folder_of(ID) == Path(ID)
    for given in ("checkpoint", "/data/lm", "./a/b", "a/b/c", "../b"):
        assert not hub.is_id(given) and hub.folder_of(given) == Path(given)
    assert hub.is_id("somebody/else")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install .huggingface_hub"):
        hub.folder_of("somebody/else")


@pytest.mark.parametrize(
    ("given", "audio", "asked"),
    [
        (ID, None, [ID, hub.AUDIO_TOKENIZER]),
        (ID, "me/tokenizer", [ID, "me/tokenizer"]),
        ("folder", "tokenizer", ["folder", "tokenizer"]),
    ],
)
def test_export_takes_both_repositories(
    monkeypatch: pytest.MonkeyPatch, given: str, audio: str | None, asked: list[str]
) -> None:
    seen: list[str] = []

    def folder(name: str) -> Path:
        seen.append(name)
        return Path("/cache") / name

    class Stop(Exception):
        pass

    def opened(*folders: Path) -> None:
        lm, tokenizer, text = folders
        assert (lm, tokenizer) == tuple(Path("/cache") / name for name in asked) and text == lm
        raise Stop

    monkeypatch.setattr(export, "folder_of", folder)
    monkeypatch.setattr(export.Sources, "open", opened)
    args = SimpleNamespace(checkpoint=given, audio_tokenizer=audio, text_tokenizer=None)
    with pytest.raises(Stop):
        export.run(args)  # type: ignore[arg-type]
    assert seen == asked


def test_a_folder_alone() -> None:
    args = SimpleNamespace(checkpoint="folder", audio_tokenizer=None, text_tokenizer=None)
    with pytest.raises(InputError, match="--audio-tokenizer DIR"):
        export.run(args)  # type: ignore[arg-type]
