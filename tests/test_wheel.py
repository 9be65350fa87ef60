"""The wheel in an environment that has the runtime's dependencies and nothing else."""

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.bundles import exported
from tests.golden import Golden

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "assets" / "clips" / "weather-question.flac"
PACKAGES = ("mimo_edge", "mimo_ref", "export", "engines", "runtime", "parity", "scripts")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def call(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a program away from the source tree, which must not be found by accident."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [str(word) for word in words]
    return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False)


def must(what: str, *words: object) -> None:
    """Preparation that needs the package index: say so where it fails."""
    done = call(*words)
    if done.returncode:
        said = f"{done.stdout}{done.stderr}"
        pytest.fail(f"{what}: exit code {done.returncode}; is the package index there?\n{said}")


@pytest.fixture(scope="module")
def tree() -> list[str]:
    """What a clone would hold: the files that git does not ignore."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tree: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tree:
        if not name.startswith("tests/golden/"):  # large, and no wheel has a use for it
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    # a source distribution, and the wheel from nothing but that
    command = (sys.executable, "-m", "build", "--outdir", out, source)
    must("the wheel cannot be built", *command)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel and what it says that it depends on."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    binary = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", binary)  # spares a pip of its own
    must("the wheel cannot be installed", *pip, "install", "--quiet", f"{wheel}[cpu]")
    return binary


def test_content(wheel: Path, tree: list[str]) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mimo_edge"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    recipes = {n for n in tree if n.startswith("engines/recipes/")}
    modules = {n for n in tree if n.endswith(".py") and n.split("/")[0] in PACKAGES}
    from_a_clone = ("scripts/nano/", "scripts/gpu/", "scripts/peers/")
    modules = {n for n in modules if not n.startswith(from_a_clone)}
    assert recipes and modules and "mimo_edge/py.typed" in names
    wanted = {n if n.startswith("mimo_edge/") else f"mimo_edge/{n}" for n in recipes | modules}
    lacking = sorted(wanted - names)
    assert not lacking, f"see packages and package-data in pyproject.toml: {lacking}"


def test_nothing_is_imported_that_is_not_in_it(wheel: Path) -> None:
    """A folder below a package is a package of its own, which setuptools wants to be told of."""
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    for name in names:
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(archive.read(name))):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            for path in (m.replace(".", "/") for m in modules if m.split(".")[0] == "mimo_edge"):
                assert {f"{path}.py", f"{path}/__init__.py"} & names, f"{name} imports {path}"


def test_a_source_distribution_has_no_tests(wheel: Path) -> None:
    """They need golden vectors and recordings, which are not in it: some of them would fail."""
    (source,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        parts = [name.split("/")[1:] for name in archive.getnames()]
    assert ["pyproject.toml"] in parts and ["LICENSE"] in parts
    assert not [path for path in parts if path[:1] == ["tests"]]


def test_metadata(wheel: Path) -> None:
    """The runtime's three dependencies, ONNX Runtime as a choice, and what an index shows."""
    archive = zipfile.ZipFile(wheel)
    (path,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    lines = archive.read(path).decode().splitlines()
    always = [n for n in lines if n.startswith("Requires-Dist:") and "extra ==" not in n]
    names = {re.split(r"[^\w-]", line.split()[1])[0] for line in always}
    assert names == {"numpy", "soundfile", "tokenizers"}
    for field in ("Project-URL: ", "Keywords: ", "License-Expression: ", "Classifier: "):
        assert any(line.startswith(field) for line in lines), field
    assert {line.split()[1] for line in lines if line.startswith("Provides-Extra:")} == set(
        PROJECT["project"]["optional-dependencies"]
    )


def test_torch_is_not_there(python: Path) -> None:
    for module in ("torch", "onnx", "onnxscript", "transformers", "safetensors"):
        done = call(python, "-c", f"import {module}")
        assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr, module


def test_every_runtime_module(python: Path) -> None:
    code = """
import importlib, pathlib, pkgutil, sys
from mimo_edge import runtime
assert pathlib.Path(sys.prefix) in pathlib.Path(runtime.__file__).parents, runtime.__file__
for module in pkgutil.walk_packages(runtime.__path__, "mimo_edge.runtime."):
    if not module.name.startswith("mimo_edge.runtime.server."):  # an extra has what it needs
        importlib.import_module(module.name)
        print(module.name)
"""
    done = call(python, "-c", code)
    assert done.returncode == 0, done.stderr
    modules = [p for p in (ROOT / "runtime").rglob("*.py") if p.parent.name != "server"]
    assert len(done.stdout.split()) == len(modules)  # the package itself not, server/ itself yes


def test_commands(python: Path, golden: Golden, tmp_path: Path) -> None:
    bundle, tool = exported(golden, golden.lm_names[0]), python.with_name("mimo-edge")
    few = ("--max-new", 5, "--json")
    sound = ("-o", tmp_path / "x.wav")
    for words in (
        ("doctor",),
        ("inspect", bundle),
        ("run", "asr", bundle, CLIP, *few),
        ("run", "tts", bundle, "Hello.", *sound, "--stream", *few),
        ("run", "dialogue", bundle, CLIP, *sound, *few),
        ("run", "chat", bundle, "Hello", *few),
    ):
        done = call(tool, *words)
        remarks = [line for line in done.stderr.splitlines() if "the answer was cut" not in line]
        assert done.returncode == 0 and not remarks, f"{words}: {done.stderr}"
        if words[0] == "run":
            assert json.loads(done.stdout)["task"] == words[1]


def test_what_needs_more_says_so(python: Path) -> None:
    """Commands for which the wheel alone is not enough."""
    tool = python.with_name("mimo-edge")
    done = call(tool, "export", "x", "--audio-tokenizer", "y", "-o", "z")
    assert done.returncode == 3 and 'pip install "torch==' in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    done = call(tool, "serve", "x")
    assert done.returncode == 3 and 'pip install "fastapi' in done.stderr, done.stderr
