"""The tree of docs/design.md is the one that is there, and no page names a file that is not."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PACKAGES = ("mimo_ref", "export", "engines", "runtime", "parity", "scripts")
FOLDERS = (*PACKAGES, "mimo_edge", "tests", "docs", "assets", "deploy")
INDENT = 4
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")
FILE = re.compile(r"`(\w+\.py)`")  # in whatever folder
DOTTED = re.compile(rf"`((?:{'|'.join(PACKAGES)})\.\w+)[\w.]*`")  # of a package: a module or folder


def tree(text: str) -> Iterator[tuple[str, str]]:
    """The paths of the tree, and what is said of each."""
    block = text.partition("## The tree\n\n```\n")[2].partition("\n```")[0]
    folders: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // INDENT
        name, _, about = line.strip().partition(" ")
        folders[depth:] = [name.rstrip("/")]
        yield "/".join(folders), about.strip()


def missing(text: str) -> list[str]:
    """What a page names and that is not there."""
    dotted = [name.replace(".", "/") for name in DOTTED.findall(text)]
    found = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    found += [name for name in dotted if not list(ROOT.glob(f"{name}*"))]
    there = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    return found + [name for name in FILE.findall(text) if name not in there]


def test_every_file_has_a_line_in_the_tree() -> None:
    said = dict(tree((ROOT / "docs" / "design.md").read_text(encoding="utf-8")))
    assert [path for path, about in said.items() if not about] == []
    assert [path for path in said if not list(ROOT.glob(path))] == []
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(files - said.keys()) == []
    tests = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*/*.py")}
    assert sorted(tests - said.keys()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_is_there(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8")) == []


def test_what_is_not_there_is_found() -> None:
    text = "## The tree\n\n```\nruntime/   all of it\n    tasks.py\n    gone.py  left\n```\n"
    assert list(tree(text)) == [
        ("runtime", "all of it"),
        ("runtime/tasks.py", ""),
        ("runtime/gone.py", "left"),
    ]
    assert missing("`runtime/tasks.py`, `tasks.py`, `runtime/`, `runtime.chat.prompts.Turn`") == []
    assert missing("`runtime/gone.py`, `gone.py`, `runtime.gone.Turn`") == [
        *("runtime/gone.py", "runtime/gone", "gone.py")
    ]
