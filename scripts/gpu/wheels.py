"""The packages that a bare machine lacks, for its Python, unpacked as an installer would."""

import subprocess
import sys
import zipfile
from pathlib import Path

from mimo_edge.runtime.bundle.errors import EnvironmentProblem

# beside what PyTorch brings (numpy among it): what the runtime, its tests and the baseline import
PACKAGES = (
    *("onnxruntime-gpu", "flatbuffers", "protobuf", "packaging"),
    *("cuda-bindings", "cuda-pathfinder", "typing-extensions"),
    *("soundfile", "cffi", "pycparser", "tokenizers", "safetensors"),
    *("pytest", "iniconfig", "pluggy", "pygments"),
)
GLIBC = (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)  # versions that wheels are named after


def download(folder: Path, python: str, packages: tuple[str, ...] = PACKAGES) -> list[Path]:
    """Fetch wheels for Linux on x86-64 and this version of Python ("3.12"). No package brings
    others along: what is missing is missing from `PACKAGES`. Raises EnvironmentProblem."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["manylinux2014_x86_64", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    command += [str(folder), "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", python]
    command += [word for platform in platforms for word in ("--platform", platform)]
    done = subprocess.run([*command, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentProblem(
            f"the packages for Python {python} cannot be fetched: {done.stderr.strip()[-300:]}"
        )
    return sorted(folder.glob("*.whl"))


def unpack(wheels: list[Path], site: Path) -> None:
    """A wheel is an archive of what lies in `site-packages`."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
