"""The rooms keep to themselves: the table of docs/design.md, held against every import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("mimo_ref", "export", "engines", "runtime", "scripts")
CONTRACT = ("runtime.bundle", "runtime.errors")

# room -> what of ours it may import besides itself; a name stands for everything under it
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "mimo_ref": (),
    "export": ("mimo_ref", *CONTRACT, "runtime.text_tokenizer"),
    "engines": (*CONTRACT, "runtime.engine"),
    "runtime": (),
    "scripts": ROOMS,
}
NEVER: dict[str, tuple[str, ...]] = {
    "mimo_ref": ("transformers", "onnx", "onnxscript"),
    "export": ("transformers",),
    "engines": ("torch", "transformers"),
    "runtime": ("torch", "onnx", "onnxscript", "transformers", "safetensors"),
    "scripts": ("transformers",),
}


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def under(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def violations(room: str, path: Path) -> list[str]:
    allowed = (room, *MAY_IMPORT[room])
    return [
        f"{path.relative_to(path.parents[1])}:{line} imports {name}"
        for line, name in imports(path)
        if under(name, NEVER[room]) or (under(name, (*ROOMS, "tests")) and not under(name, allowed))
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_it_may(room: str) -> None:
    assert files(room), f"no room {room}"
    assert [v for path in files(room) for v in violations(room, path)] == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("runtime", "import torch"),
        ("runtime", "def f():\n    from torch.nn import Linear"),
        ("runtime", "from mimo_ref import rvq"),
        ("engines", "import torch.onnx as t"),
        ("engines", "from runtime import loop"),
        ("engines", "from export.piece import Piece"),
        ("export", "from runtime.loop import generate"),
        ("export", "import scripts.tolerances"),
        ("mimo_ref", "from runtime.errors import InputError"),
        ("scripts", "from tests.golden import Golden"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, room: str, line: str) -> None:
    path = tmp_path / "some" / "file.py"
    path.parent.mkdir()
    path.write_text(line)
    assert violations(room, path)


IMPORT_ALL = """
import importlib, pkgutil, sys
import runtime
for module in pkgutil.walk_packages(runtime.__path__, "runtime."):
    importlib.import_module(module.name)
print(*sys.modules)
"""


def test_runtime_loads_no_torch() -> None:
    """Not even through a package that it uses."""
    command = [sys.executable, "-c", IMPORT_ALL]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert {f"runtime.{path.stem}" for path in files("runtime")} - {"runtime.__init__"} <= loaded
    assert not loaded & {"torch", "onnx", "transformers"}
