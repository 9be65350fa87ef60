"""What is missing on a machine is said with a way to get it that works."""

import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, InputError
from mimo_edge.runtime.bundle.requirements import of_extra
from mimo_edge.scripts import cli, demo, doctor
from mimo_edge.scripts.doctor import Finding

from tests.bundles import hollow
from tests.test_imports import files, imports

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PACKAGES = {
    "tensorrt_rtx": "tensorrt-rtx",
    "ml_dtypes": "ml-dtypes",
    "onnx_ir": "onnx-ir",
    "cuda": "cuda-python",
}


def distributions(extra: str) -> set[str]:
    return {re.split(r"[^\w-]", line)[0] for line in EXTRAS[extra]}


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("build", "onnx", "trt"),
        ("export", "onnx", "export"),
        ("export", "onnx_ir", "export"),
        ("export", "safetensors", "export"),
        ("demo", "torch", "export"),
        ("make-checkpoint", "torch", "export"),
    ],
)
def test_a_missing_package(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    package: str,
    extra: str,
) -> None:
    """The extra that is named has the package."""

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.part")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert cli.main([command]) == 3
    said = capsys.readouterr().err
    assert f"`mimo-edge {command}` needs the package {package}" in said
    assert all(f'"{requirement}"' in said for requirement in of_extra(extra))
    assert "mimo-edge[" not in said, "the package is on no index"
    assert PACKAGES.get(package, package) in distributions(extra)


@pytest.mark.parametrize(("package", "extra"), [("export", "export"), ("engines", "trt")])
def test_an_extra_has_what_its_package_imports(package: str, extra: str) -> None:
    """Directly: what comes along with another package may go with it."""
    named = {name.split(".")[0] for path in files(package) for _, name in imports(path)}
    wanted = {PACKAGES.get(name, name) for name in named & set(cli.OPTIONAL)}
    assert wanted <= distributions(extra)


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"dev"}))
def test_what_an_extra_needs_is_what_the_project_says(extra: str) -> None:
    """The metadata of what is installed; where this fails, install the project again."""
    assert sorted(map(squeezed, of_extra(extra))) == sorted(map(squeezed, EXTRAS[extra]))


def squeezed(requirement: str) -> tuple[str, frozenset[str]]:
    """Name and conditions, which builders write in an order of their own."""
    name = re.split(r"[^\w-]", requirement)[0]
    return name, frozenset(requirement.removeprefix(name).replace(" ", "").split(","))


def test_onnxruntime_is_a_choice() -> None:
    """Its variants write into one folder: nothing but the extra of its name brings one."""
    uninstall, install = doctor.ORT_GPU.split("; ")
    assert {"onnxruntime", "onnxruntime-gpu"} <= set(uninstall.split()) and "mimo" not in install
    always = {re.split(r"[^\w-]", line)[0] for line in PROJECT["dependencies"]}
    assert always == {"numpy", "soundfile", "tokenizers"}
    bring = {extra: distributions(extra) for extra in EXTRAS}
    assert [e for e in bring if "onnxruntime" in bring[e]] == ["cpu"]
    assert [e for e in bring if "onnxruntime-gpu" in bring[e]] == ["gpu"]


def test_no_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one to install is said, and neither is taken for granted."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentProblem, match=r'"onnxruntime>=.*"onnxruntime-gpu>='):
        open_backend("ort-cpu", hollow(tmp_path / "bundle"))
    found = doctor.examine()
    assert not found[1].works and found[1].remedy


def test_engines_are_built_without_onnxruntime(tmp_path: Path) -> None:
    """A Jetson has none; only its own target asks for it."""
    hollow(tmp_path / "bundle")
    program = """if True:
        import sys
        sys.modules["onnxruntime"] = None
        from mimo_edge.scripts.cli import main
        words = ["build", sys.argv[1], "--dry-run", "--target"]
        print(main([*words, "trt-rtx:8.9"]), main([*words, "ort-cpu"]), file=sys.stderr)"""
    command = [sys.executable, "-c", program, str(tmp_path / "bundle")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert said.splitlines()[-1] == "0 3" and "no ONNX Runtime is installed" in said


def test_two_onnxruntimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are those of whichever was installed last, and pip is content."""
    both = {"onnxruntime": ["onnxruntime", "onnxruntime-gpu", "onnxruntime"]}
    monkeypatch.setattr(doctor.importlib.metadata, "packages_distributions", lambda: both)
    (found,) = (f for f in doctor.examine() if f.what == "one ONNX Runtime")
    assert not found.works and "onnxruntime and onnxruntime-gpu overwrite" in found.found
    assert found.remedy.startswith("pip uninstall --yes onnxruntime onnxruntime-gpu, ")
    monkeypatch.setitem(both, "onnxruntime", ["onnxruntime-gpu"])
    assert not [f for f in doctor.examine() if f.what == "one ONNX Runtime"]


def gpu(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> Finding:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(doctor.subprocess, "run", run)
    return doctor._gpu()


def test_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(code: int, out: str = "", err: str = "") -> Callable[..., Any]:
        return lambda *_, **__: SimpleNamespace(returncode=code, stdout=out, stderr=err)

    def hangs(command: object, timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(str(command), timeout)

    def breaks(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    found = gpu(monkeypatch, says(0, "RTX 4090, 8.9\n"))
    assert found.works and found.found == "RTX 4090, 8.9"
    for run, part in (
        (says(9, err="couldn't communicate with the NVIDIA driver"), "communicate"),
        (says(9), "none answers"),
        (hangs, "says nothing"),
        (breaks, "Permission denied"),
    ):
        found = gpu(monkeypatch, run)
        assert not found.works and part in found.found and "driver" in found.remedy


def test_an_installed_package_has_no_nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ASSETS", tmp_path / "assets")
    with pytest.raises(InputError, match="run the demo from the repository"):
        demo.run(SimpleNamespace(out=tmp_path / "out"))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_demo_replaces_no_bundle_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where `--out` is the folder with the user's own."""
    written: list[Path] = []

    def export(sources: object, output: Path, *_: object, **__: object) -> None:
        written.append(output)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "export_bundle", export)
    with pytest.raises(KeyboardInterrupt):
        demo.run(SimpleNamespace(out=tmp_path))  # type: ignore[arg-type]
    assert written == [tmp_path / demo.BUNDLE] and demo.BUNDLE not in ("bundle", "nano")
    assert "--dtype fp16" in demo.NEXT, "the 7B does not fit many machines in float32"
