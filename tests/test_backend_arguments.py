"""The flags that say on what a bundle runs: one declaration, and what they say arrives."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from mimo_edge.runtime.bundle.errors import MimoError
from mimo_edge.scripts import backend_arguments
from mimo_edge.scripts.backend_arguments import add_backend_arguments, opening
from mimo_edge.scripts.cli import main

from tests.bundles import hollow

GIVEN = (
    *("--provider", "CUDAExecutionProvider", "--provider-option", "device_id=1"),
    *("--provider-option", "user_compute_stream=a=b", "--provider", "CPUExecutionProvider"),
    *("--session-option", "session.intra_op.allow_spinning=0", "--threads", "2"),
)
WANTED = {
    "threads": 2,
    "providers": [
        ("CUDAExecutionProvider", {"device_id": "1", "user_compute_stream": "a=b"}),
        ("CPUExecutionProvider", {}),
    ],
    "session_options": {"session.intra_op.allow_spinning": "0"},
    "engines": None,
    "trust_engines": False,
}
# engines are TensorRT's: ONNX Runtime hears nothing of them
ORT = {n: v for n, v in WANTED.items() if n not in ("engines", "trust_engines")}


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_backend_arguments(parser)
    return parser.parse_args(words)


def test_what_they_say() -> None:
    assert opening(parsed(*GIVEN)) == WANTED
    engines = {"engines": Path("here"), "trust_engines": True}
    assert opening(parsed(*GIVEN, "--engines", "here", "--trust-engines")) == WANTED | engines
    none = dict.fromkeys(("threads", "providers", "session_options", "engines"))
    assert opening(parsed()) == none | {"trust_engines": False}
    assert opening(parsed("--provider", "A"))["providers"] == [("A", {})]  # nothing is left over


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--provider-option", "a=b"), "must follow the --provider"),
        (("--provider", "A", "--provider-option", "ab"), "must be KEY=VALUE"),
        (("--session-option", "=b"), "must be KEY=VALUE"),
    ],
)
def test_what_they_refuse(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    assert said in capsys.readouterr().err


class Opened(MimoError):
    pass


@pytest.mark.parametrize("command", [("run", "chat"), ("score",), ("bench",)])
def test_every_command_that_runs_a_bundle_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    seen: list[dict[str, Any]] = []

    def opened(bundle: Any, device: str, threads: int | None, **more: Any) -> None:
        seen.append({"threads": threads, **more})
        raise Opened("seen")

    monkeypatch.setattr("mimo_edge.runtime.backends.ort.OrtBackend", opened)
    folder = str(hollow(tmp_path / "bundle").folder)
    words = [*command, folder, *(("hi",) if command[0] == "run" else ()), *GIVEN]
    assert main(words) == Opened.exit_code and seen == [ORT]


def test_a_large_bundle_shows_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hollow(tmp_path / "bundle").folder
    backend_arguments.verify(folder)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(backend_arguments, "LARGE", 1)
    backend_arguments.verify(folder)
    assert "checking the bundle" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("mimo-edge ") and len(said.split(".")) == 3
