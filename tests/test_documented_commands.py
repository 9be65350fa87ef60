"""Every command line that the pages show is one that the program takes."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
from mimo_edge.scripts.cli import COMMANDS, parser_of

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SHELL = ("|", ">", "2>", "&&", ";", "&")  # where the command ends
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def shown(page: Path) -> list[str]:
    """The command lines in a page's blocks, without comments, a continued one as one."""
    lines = []
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line.startswith("mimo-edge "):
                lines.append(line)
    return lines


LINES = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in shown(page)]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{p}:{line}" for p, line in LINES])
def test_is_taken(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line, comments=True)[1:]
    words = list(itertools.takewhile(lambda word: word not in SHELL, words))
    parser, module = parser_of(words)
    try:
        parser.parse_args(words)
    except SystemExit:
        pytest.fail(f"{page} shows {line!r}: {capsys.readouterr().err}")
    assert module is not None


def test_pages_of_deployment_are_among_them() -> None:
    for page in ("cpu", "rtx", "jetson"):
        commands = {line.split()[1] for name, line in LINES if name == f"docs/deploy/{page}.md"}
        assert {"export", "plan", "pack", "doctor", "run"} <= commands <= COMMANDS.keys()


def test_the_first_page_names_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {name for name in COMMANDS if re.search(rf"(mimo-edge |make |`){name}[ `]", text)}
    assert named == COMMANDS.keys()


def test_what_does_not_exist_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("pack bundle --target trt -o device --fast", "paint bundle"):
        parser, _ = parser_of(line.split())
        with pytest.raises(SystemExit):
            parser.parse_args(line.split())
