"""A build that is stopped: between pieces, and by Ctrl-C while TensorRT works."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import tensorrt_rtx
from mimo_edge.engines import build as build_module
from mimo_edge.engines import builder
from mimo_edge.engines.build import build_engines, identity_of
from mimo_edge.engines.builder import (
    INTERRUPTED,
    Built,
    StillBuilding,
    build,
)
from mimo_edge.engines.bundle_recipe import for_bundle
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import read
from mimo_edge.runtime.bundle.engine_folders import home_of, name_of
from mimo_edge.runtime.bundle.errors import EngineError
from mimo_edge.runtime.bundle.manifest import PIECES

from tests.engines.targets import LIMITS, ONE, ROOT, TARGET
from tests.foreground import heed_signals
from tests.golden import Golden


def test_stopped_between_pieces(
    golden: Golden, bundle_copy: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No engine.json, nothing temporary, and the finished plan stays."""
    bundle = bundle_copy(golden.lm_names[0])
    identity = identity_of(bundle, for_bundle(bundle, None), TARGET, tensorrt_rtx, LIMITS)
    real = build_module.build

    def stop(*args: Any) -> Built:
        if args[2].stem != PIECES[0]:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(build_module, "build", stop)
    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, identity, TARGET, tensorrt_rtx, LIMITS, home_of(bundle))
    folder = home_of(bundle) / name_of(identity)
    assert {p.name for p in folder.iterdir()} == {"mel.plan", "mel.log", "mel.json"}
    with pytest.raises(EngineError, match="no finished engine"):
        read(folder)


def test_ctrl_c_while_tensorrt_works(golden: Golden, bundle_copy: Callable[..., Bundle]) -> None:
    """The real signal, to the real command, in the middle of a real build. TensorRT ends its step
    first; a second Ctrl-C does not wait for that."""
    bundle = bundle_copy(golden.lm_names[0], "fp16")
    command = [sys.executable, "-m", "mimo_edge", "build", str(bundle.folder)]
    command += ["--target", "trt-rtx:8.9", "--max-seq", "64"]

    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals
    )
    assert process.stderr is not None
    said, interrupts = [], 0
    for line in process.stderr:
        said.append(line)
        if "building tokenizer_decoder" in line and interrupts == 0:
            time.sleep(0.5)  # it takes some seconds
            process.send_signal(signal.SIGINT)
            interrupts = 1
        if "Ctrl-C again" in line:
            process.send_signal(signal.SIGINT)
            interrupts = 2
    # the second may find an interpreter that is about to end, which it then ends
    assert process.wait() in (130, -signal.SIGINT) and interrupts == 2, said
    assert "mimo-edge: interrupted" in said[-1]
    (folder,) = home_of(bundle).iterdir()
    left = {path.name for path in folder.iterdir()}
    assert {"backbone.plan", "backbone.log", "backbone.json"} <= left
    assert not left & {"engine.json", "tokenizer_decoder.plan"}
    assert not any(name.endswith(".part") for name in left)


def test_ctrl_c_while_the_first_one_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT still runs then, too: an interpreter that ends as usual would abort."""
    may_end, phases = threading.Event(), []
    monkeypatch.setattr(builder, "_build", lambda *_: may_end.wait())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def progress(phase: str, done: int, total: int) -> None:
        phases.append(phase)
        signal.raise_signal(signal.SIGINT)

    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(StillBuilding):
            build(tensorrt_rtx, ONE, Path("none"), [{}], 16, progress, model=onnx.ModelProto())
    finally:
        may_end.set()
        signal.signal(signal.SIGINT, before)
    assert phases == [INTERRUPTED]
