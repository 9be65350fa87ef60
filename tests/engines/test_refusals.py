"""Engines that do not fit are refused with a sentence that names the difference."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle import MANIFEST as BUNDLE_MANIFEST
from runtime.bundle import Bundle
from runtime.engine import MANIFEST
from runtime.errors import EngineError
from runtime.trt_backend import TrtBackend
from tests.engines.fake_gpu import FakeDevice, FakeTensorRT


def change(folder: Path, **identity: Any) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    raw["identity"] |= identity
    (folder / MANIFEST).write_text(json.dumps(raw))


def truncate(folder: Path) -> None:
    plan = folder / "backbone.plan"
    plan.write_bytes(plan.read_bytes()[:-1])


def alter(folder: Path) -> None:
    plan = folder / "backbone.plan"
    plan.write_bytes(bytes([plan.read_bytes()[0] ^ 1]) + plan.read_bytes()[1:])


def forget(folder: Path) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    del raw["plans"]["mel"]
    (folder / MANIFEST).write_text(json.dumps(raw))


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "other version": (lambda f: change(f, version="1.6.0"), r"version 1\.6\.0, here is 1\.7"),
    "other weights": (lambda f: change(f, bundle="0" * 64), r"bundle 0{16}, here is"),
    "other GPU": (lambda f: change(f, capabilities=["12.0"]), r"12\.0, this GPU has 8\.9"),
    "truncated plan": (truncate, r"backbone\.plan is truncated"),
    "altered plan": (alter, r"backbone\.plan is truncated or altered"),
    "missing plan": (lambda f: (f / "mel.plan").unlink(), r"mel\.plan is missing"),
    "missing piece": (forget, "lacks mel"),
    "not finished": (lambda f: (f / MANIFEST).unlink(), "no finished engine"),
    "damaged manifest": (lambda f: (f / MANIFEST).write_text("{"), "is damaged"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(scratch: tuple[Bundle, Path], case: str) -> None:
    bundle, folder = scratch
    CASES[case][0](folder)
    device = FakeDevice()
    with pytest.raises(EngineError, match=CASES[case][1]) as error:
        TrtBackend(bundle, "trt-rtx", FakeTensorRT(device), device)  # type: ignore[arg-type]
    assert "mimo-edge build" in str(error.value), "the remedy"


def test_no_engines(scratch: tuple[Bundle, Path]) -> None:
    bundle, _ = scratch
    device = FakeDevice()
    with pytest.raises(EngineError, match=r"has no engines for trt .*mimo-edge build"):
        TrtBackend(bundle, "trt", FakeTensorRT(device), device)  # type: ignore[arg-type]


def test_bundle_identity_follows_its_files(scratch: tuple[Bundle, Path]) -> None:
    bundle, _ = scratch
    raw = json.loads((bundle.folder / BUNDLE_MANIFEST).read_text())
    next(iter(raw["files"].values()))["sha256"] = "0" * 64
    text = json.dumps(raw)
    assert type(bundle.manifest).from_json(text) != bundle.manifest
