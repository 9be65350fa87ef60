"""Standard streams that are closed, full, or whose reader leaves; and signals."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mimo_edge.runtime.chat.conversation import read_history
from mimo_edge.scripts.run import _printable
from mimo_edge.scripts.run_tasks import typed

from tests.cli.conftest import CLIP, Outcome, process

Run = Callable[..., Outcome]
HAS_FULL = Path("/dev/full").exists()


def shell(redirections: str, *words: object, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A command with redirections, as bash makes them."""
    command = [sys.executable, "-m", "mimo_edge", *map(str, words)]
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirections}', "bash", *command],
        capture_output=True,
        timeout=100,
        env=os.environ | env,
    )


def test_stderr_whose_reader_has_left(tmp_path: Path) -> None:
    """Progress that cannot be written is no reason to stop, and the exit code is that of the work.
    make-checkpoint tells bytes; an error has its own code."""
    out = tmp_path / "pair"
    for name, sink in (("a", "2> >(true)"), ("b", "2>/dev/full"), ("c", "2>&-")):
        if sink.endswith("full") and not HAS_FULL:
            continue
        done = shell(f"{sink}; exit", "make-checkpoint", out / name, "--preset", "tiny")
        assert done.returncode == 0 and (out / name / "language_model" / "config.json").is_file()
        refused = shell(f"{sink}; exit", "inspect", out / name)
        assert refused.returncode == 2, "what is refused is refused, whoever hears it"


def test_readers_that_leave_and_files_that_are_asked_for(bundle: Path, tmp_path: Path) -> None:
    """Text that nobody reads is dropped; the files are whole."""
    wav, talk = tmp_path / "h.wav", tmp_path / "t.npz"
    few = ("--max-new", 12, "--min-new", 12)
    done = shell("| true", "run", "tts", bundle, "Hello.", "-o", wav, "--stream", *few)
    assert done.returncode == 0 and wav.stat().st_size > 44
    done = shell("| true", "run", "chat", bundle, "Hello", "--history", talk, "--stream", *few)
    grid = read_history(talk)
    assert done.returncode == 0 and grid is not None
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["h.wav", "t.npz"], "a lock or a temporary file was left"


def test_stdout_that_is_closed(bundle: Path, tmp_path: Path) -> None:
    """A transcript that goes nowhere is an error, and an error is told."""
    done = shell(">&-", "run", "asr", bundle, CLIP, "--max-new", 2)
    assert done.returncode == 2 and b"stdout is closed" in done.stderr
    assert b"Traceback" not in done.stderr
    done = shell(">&-", "run", "asr", tmp_path, CLIP)
    assert done.returncode == 2 and b"is not a bundle" in done.stderr
    talk = tmp_path / "t.npz"
    done = shell(">&-", "run", "chat", bundle, "hi", "--max-new", 2, "--history", talk)
    assert done.returncode == 2 and read_history(talk) is not None
    done = shell(">&- 2>&-", "run", "asr", bundle, CLIP, "--max-new", 2)
    assert done.returncode == 2 and done.stdout == done.stderr == b""


def test_stderr_that_is_closed(bundle: Path, tmp_path: Path) -> None:
    """Messages do not end up among the results, nor in a file that was opened in their place."""
    done = shell("2>&-", "run", "asr", bundle, "missing.wav")
    assert done.returncode == 2 and done.stdout == b""
    words = ("run", "tts", bundle, "Hello.", "-o", "-", "--max-new", 12, "--json")
    silent, told = shell("2>&-", *words), shell("", *words)
    assert silent.returncode == told.returncode == 0 and silent.stdout == told.stdout
    assert json.loads(told.stderr)["task"] == "tts"
    done = shell("2>&-", "run", "fly", bundle)
    assert done.returncode == 2 and done.stdout == b""


@pytest.mark.skipif(not HAS_FULL, reason="Linux has a device that is full")
def test_a_full_stdout_and_files_that_are_asked_for(bundle: Path, tmp_path: Path) -> None:
    talk = tmp_path / "t.npz"
    words = ("run", "chat", bundle, "hi", "--max-new", 2, "--history", talk)
    done = shell(">/dev/full", *words)
    assert done.returncode == 4 and b"No space left" in done.stderr
    assert read_history(talk) is not None
    assert shell(">/dev/full", "--help").returncode == 4


def test_a_home_without_traces(bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime's telemetry is off before it is imported; nothing else leaves files either."""
    home = tmp_path / "home"
    home.mkdir()
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
    env = {k: v for k, v in env.items() if not k.startswith("XDG_")} | {"HOME": str(home)}
    command = [sys.executable, "-m", "mimo_edge"]
    words = ["run", "asr", bundle, CLIP, "--max-new", "1", "--json"]
    done = subprocess.run([*command, *words], env=env, capture_output=True, timeout=60)
    assert done.returncode == 0 and b"Microsoft" not in done.stderr
    assert list(home.rglob("*")) == []
    del env["HOME"]
    done = subprocess.run([*command, "doctor"], env=env, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stderr == b""


def test_telemetry_is_off_before_the_runtime_is_imported() -> None:
    program = (
        "import os, sys; os.environ.pop('ORT_DISABLE_TELEMETRY', 0); import mimo_edge;"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.split() == [b"1", b"False"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_as_ctrl_c_does(bundle: Path, tmp_path: Path, number: int) -> None:
    """Nothing half done is left, and the code says which signal it was."""
    words = ("run", "tts", bundle, "Hello.", "-o", tmp_path / "h.wav", "--stream", "--chunk", 1)
    running = process(*words, "--right-overlap", 0, "--min-new", 8000)
    with contextlib.closing(running.stdout), contextlib.closing(running.stderr):
        while not list(tmp_path.glob("*.part")):
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
        running.send_signal(number)
        assert running.wait(timeout=60) == 128 + number
        assert b"interrupted" in running.stderr.read()
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_leaves_is_removed_by_the_next(bundle: Path, tmp_path: Path) -> None:
    words = ("run", "tts", bundle, "Hello.", "-o", tmp_path / "h.wav", "--stream", "--chunk", 1)
    running = process(*words, "--right-overlap", 0, "--min-new", 8000)
    while not list(tmp_path.glob("*.part")):
        assert running.poll() is None
        time.sleep(0.05)
    second = process(*words)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2 and f"written by process {running.pid} on".encode() in err
    running.kill()
    running.communicate()
    assert len(list(tmp_path.iterdir())) == 2, "a temporary file and a lock"
    assert process(*words, "--max-new", 2).wait(timeout=60) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["h.wav"]


def test_characters_that_are_kept() -> None:
    kept = "a\u3000b\u00a0c\u202fd\u200de\u200cf\u200e\u200fg\u2028h\u202ei\n\t"
    assert _printable(kept) == kept
    assert _printable("a\x1b[31m\r\x9b\x00\ud800") == "a\ufffd[31m" + "\ufffd" * 4


def test_text_in_a_locale_without_it(bundle: Path) -> None:
    """Python gives bytes of the command line that it cannot read as halves of characters."""
    assert typed("你好".encode().decode("ascii", "surrogateescape")) == "你好"
    assert typed("bad \udcff") == "bad \udcff"
    text = "你好"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ("run", "chat", bundle, text, "--max-new", 8, "--json")
    here, there = shell("", *words), shell("", *words, **plain)
    assert there.returncode == 0, there.stderr
    assert json.loads(here.stdout)["text"] == json.loads(there.stdout)["text"]
