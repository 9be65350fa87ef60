"""The command line as a user meets it: exit code, stdout, stderr, and what lies in the folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.manifest import ModelSpec
from mimo_edge.scripts.cli import main

from tests.bundles import exported
from tests.foreground import heed_signals
from tests.golden import Golden

CLIP = Path(__file__).parents[2] / "assets" / "clips" / "weather-question.flac"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str  # without the path of the test's folder: pytest puts the test's own words into it
    changed: list[str]  # in the test's folder

    def refused(self, code: int, *parts: str) -> None:
        """It failed as it should: this code and these words, no traceback, and no trace."""
        assert self.code == code, f"exit code {self.code}: {self.err}"
        for part in parts:
            assert part in self.err, f"{part!r} is not in: {self.err}"
        assert "Traceback" not in self.err and self.out == ""
        assert not self.changed, f"left behind or changed: {self.changed}"


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies below a folder, and when it was written. Of a folder only that it is there."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        if not path.is_dir()
        else (0, 0)
        for path in folder.rglob("*")
    }


@pytest.fixture
def mimo_edge(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """Run a command in this process."""

    def run(*words: object) -> Outcome:
        if words[:1] == ("run",) and "--max-new" not in words:
            # what should be refused and is not would speak until the context is full
            words += ("--max-new", 2)
        capsys.readouterr()
        before = tree(tmp_path)
        try:
            code = main([str(word) for word in words])
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
        done, after = capsys.readouterr(), tree(tmp_path)
        changed = [n for n in before.keys() | after.keys() if before.get(n) != after.get(n)]
        return Outcome(code, done.out, done.err.replace(str(tmp_path), ""), sorted(changed))

    return run


def process(*words: object, **settings: object) -> subprocess.Popen[bytes]:
    """Start a command as a process of its own. Output is buffered, as it is for a user."""
    command = [sys.executable, "-m", "mimo_edge"]
    command += [w if isinstance(w, bytes) else str(w) for w in words]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    env |= settings.pop("env", {})  # type: ignore[call-overload]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": heed_signals}
    return subprocess.Popen(command, env=env, **how | settings)  # type: ignore[call-overload]


@pytest.fixture(scope="session")
def bundle(golden: Golden) -> Path:
    """A sound bundle; not to be changed."""
    return exported(golden, golden.lm_names[0])


@pytest.fixture(scope="session")
def spec(bundle: Path) -> ModelSpec:
    return Bundle.open(bundle).model


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle", ignore=lambda *_: ["engines"]))
