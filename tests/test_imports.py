"""The packages keep to themselves: the table of docs/design.md, held against every import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mimo_ref", "export", "engines", "runtime", "parity", "scripts")
CONTRACT = ("runtime.bundle",)
# what the exporter and `mimo-edge quantize` share
QUANTISING = tuple(
    f"engines.{name}"
    for name in (
        *("calibration", "components", "recipe", "scaling", "schemes", "weigh", "weight_file"),
        *("quantized_graph", "quantized_piece", "resumed", "work"),
    )
)

# package -> what of ours it may import besides itself; a name stands for everything under it
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "mimo_ref": (),
    "export": (
        "mimo_ref",
        *CONTRACT,
        "runtime.chat.protocol",
        "runtime.chat.text_tokenizer",
        *QUANTISING,
    ),
    "engines": CONTRACT,
    "runtime": (),
    "parity": tuple(p for p in PACKAGES if p != "scripts"),
    "scripts": PACKAGES,
}
NEVER: dict[str, tuple[str, ...]] = {
    "mimo_ref": ("transformers", "onnx", "onnxscript"),
    "export": ("transformers",),
    "engines": ("torch", "transformers"),
    "runtime": ("torch", "onnx", "onnxscript", "transformers", "safetensors"),
    "parity": ("transformers",),
    "scripts": ("transformers",),
}


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


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


def violations(package: str, path: Path) -> list[str]:
    allowed = tuple(f"mimo_edge.{name}" for name in (package, *MAY_IMPORT[package]))
    # under its own name a folder is found only where the tree is the working directory
    ours = ("mimo_edge", "tests", *PACKAGES)
    return [
        f"{path.relative_to(path.parents[1])}:{line} imports {name}"
        for line, name in imports(path)
        if under(name, NEVER[package]) or (under(name, ours) and not under(name, allowed))
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_what_it_may(package: str) -> None:
    assert files(package), f"no package {package}"
    assert [v for path in files(package) for v in violations(package, path)] == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("runtime", "import torch"),
        ("runtime", "def f():\n    from torch.nn import Linear"),
        ("runtime", "from mimo_edge.mimo_ref import rvq"),
        ("runtime", "from runtime.bundle.errors import InputError"),
        ("engines", "import torch.onnx as t"),
        ("engines", "from mimo_edge.runtime.generation import loop"),
        ("engines", "from mimo_edge.export.piece import Piece"),
        ("export", "from mimo_edge.runtime.generation.request import generate"),
        ("export", "import mimo_edge.parity.tolerances"),
        ("parity", "from mimo_edge.scripts.progress import size"),
        ("mimo_ref", "from mimo_edge.runtime.bundle.errors import InputError"),
        ("scripts", "from tests.golden import Golden"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, package: str, line: str) -> None:
    path = tmp_path / "some" / "file.py"
    path.parent.mkdir()
    path.write_text(line)
    assert violations(package, path)


def test_no_package_imports_in_a_circle() -> None:
    """Neither do two modules of one package: what both need is a third."""
    modules = {}
    for package in PACKAGES:
        for path in files(package):
            name = ".".join(("mimo_edge", *path.relative_to(ROOT).with_suffix("").parts))
            modules[name.removesuffix(".__init__")] = path
    graph = {}
    for module, path in modules.items():
        named = {name for _, name in imports(path)}
        named |= {name.rpartition(".")[0] for name in named}
        graph[module] = sorted(named & modules.keys() - {module})
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join((*trail, module))}"
        if module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def elsewhere(code: str, folder: Path) -> str:
    """What a program prints that runs in this folder."""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


IMPORT_ALL = """
import importlib, pkgutil, sys
import mimo_edge.runtime
for module in pkgutil.walk_packages(mimo_edge.runtime.__path__, "mimo_edge.runtime."):
    importlib.import_module(module.name)
print(*sys.modules)
"""


def test_runtime_loads_no_torch(tmp_path: Path) -> None:
    """Not even through a package that it uses."""
    loaded = set(elsewhere(IMPORT_ALL, tmp_path).split())
    ours = (path.relative_to(ROOT).with_suffix("") for path in files("runtime"))
    names = {".".join(("mimo_edge", *path.parts)).removesuffix(".__init__") for path in ours}
    assert names <= loaded
    assert not loaded & {"torch", "onnx", "transformers"}


def test_folders_of_the_user_are_not_ours(tmp_path: Path) -> None:
    """A program may have a runtime/, an export/ and a scripts/ of its own."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise AssertionError('the user\\'s own')")
    code = "import mimo_edge, mimo_edge.scripts.cli; print(mimo_edge.load.__module__)"
    assert elsewhere(code, tmp_path) == "mimo_edge\n"
