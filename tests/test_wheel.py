"""The wheel in an environment that has the runtime's dependencies and nothing else."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.bundles import exported
from tests.golden import Golden

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "assets" / "clips" / "weather-question.flac"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files under version control, as a user's clone has them."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    binary = folder / "bin" / "python"
    subprocess.run([binary, "-m", "pip", "install", "--quiet", wheel], check=True)
    return binary


def run(python: Path, *words: object) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python), *map(str, words)]
    return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False)


def test_content(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    rooms = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert rooms == {"mimo_ref", "export", "engines", "runtime", "scripts"}
    assert any(name.endswith("LICENSE") for name in names)
    recipes = {p.name for p in (ROOT / "engines" / "recipes").glob("*.toml")}
    assert recipes == {name.rsplit("/")[-1] for name in names if name.endswith(".toml")}


def test_torch_is_not_there(python: Path) -> None:
    for module in ("torch", "onnx", "transformers", "safetensors"):
        assert run(python, "-c", f"import {module}").returncode != 0, module


def test_every_runtime_module(python: Path) -> None:
    code = """
import importlib, pkgutil, runtime
for module in pkgutil.iter_modules(runtime.__path__):
    importlib.import_module("runtime." + module.name)
"""
    done = run(python, "-c", code)
    assert done.returncode == 0, done.stderr


def test_commands(python: Path, golden: Golden, tmp_path: Path) -> None:
    bundle, tool = exported(golden, golden.lm_names[0]), python.with_name("mimo-edge")

    def command(*words: object) -> subprocess.CompletedProcess[str]:
        return run(tool, *words)

    few = ("--max-new", 5)
    for words in (
        ("doctor",),
        ("inspect", bundle),
        ("run", "asr", bundle, CLIP, *few),
        ("run", "tts", bundle, "Hello.", "-o", tmp_path / "x.wav", "--stream", *few),
        ("run", "dialogue", bundle, CLIP, "-o", tmp_path / "y.wav", *few),
    ):
        done = command(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
    done = command("export", "x", "--audio-tokenizer", "y", "-o", "z")
    assert done.returncode == 3 and "mimo-edge[export]" in done.stderr
