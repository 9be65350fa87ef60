"""The command line as a user meets it: exit code, stdout, stderr."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.cli import main
from tests.bundles import exported
from tests.golden import Golden

CLIP = Path(__file__).parents[2] / "assets" / "clips" / "weather-question.flac"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def refused(self, code: int, *parts: str) -> None:
        """It failed as it should: with this code and these words, and without a traceback."""
        assert self.code == code, f"exit code {self.code}: {self.err}"
        for part in parts:
            assert part in self.err, f"{part!r} is not in: {self.err}"
        assert "Traceback" not in self.err and self.out == ""


@pytest.fixture
def mimo_edge(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process."""

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
        done = capsys.readouterr()
        return Outcome(code, done.out, done.err)

    return run


@pytest.fixture(scope="session")
def bundle(golden: Golden) -> Path:
    """A sound bundle; not to be changed."""
    return exported(golden, golden.lm_names[0])


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle", ignore=lambda *_: ["engines"]))


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, request: pytest.FixtureRequest):
    """No temporary file may stay, whatever happened."""
    yield
    left = [p.name for p in tmp_path.rglob("*") if ".tmp" in p.name or p.name.endswith(".part")]
    assert not left, f"left behind: {left}"
