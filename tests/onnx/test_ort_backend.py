"""ONNX Runtime's failures as ours, and rows that are used again."""

import shutil
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.parity import tolerances
from mimo_edge.runtime.backends.ort import OrtBackend, _named
from mimo_edge.runtime.backends.ort_rows import FIRST_CAPACITY, OrtRowStates
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import (
    BundleError,
    BundleWarning,
    EnvironmentProblem,
    ResourceError,
)
from mimo_edge.scripts.cli import main

from tests import check
from tests.bundles import exported
from tests.golden import Golden


def prompt_of(golden: Golden, backend: OrtBackend, patches: int) -> tuple[np.ndarray, np.ndarray]:
    model, rng = backend.bundle.model, np.random.default_rng(patches)
    codes = rng.integers(0, np.array(model.code_vocab) - 1, (patches, model.group_size, model.n_q))
    return np.full(patches, golden.empty_id), np.ascontiguousarray(codes.swapaxes(1, 2))


def poison(states: OrtRowStates, row: int) -> None:
    """As an answer leaves the cache in which a component overflowed."""
    for cache in states._caches:
        cache.read()[row, :, : states._touched[row]] = np.nan


@pytest.mark.parametrize("rows", [1, 2])
def test_what_overflowed_stays_in_its_answer(
    golden: Golden, backend: OrtBackend, rows: int
) -> None:
    short, longer = (prompt_of(golden, backend, patches) for patches in (5, 9))
    expected = backend.new_rows(1).extend(0, *short)
    states = backend.new_rows(rows)
    states.extend(rows - 1, *longer)
    poison(states, rows - 1)
    states.truncate(rows - 1, 0)
    check.equal(states.extend(rows - 1, *short), expected, "scores")
    active = np.arange(rows) == rows - 1
    empty = np.zeros((rows, *short[1].shape[1:]), np.int64)
    assert np.isfinite(states.step(0, np.zeros(rows, np.int64), empty, active)[rows - 1]).all()


def test_a_row_goes_on_from_what_another_holds(golden: Golden, backend: OrtBackend) -> None:
    """Copied, cut and extended: as if it had been read alone, in one go."""
    ids, codes = prompt_of(golden, backend, 12)
    expected = backend.new_rows(1).extend(0, ids, codes).copy()
    states = backend.new_rows(3)
    states.extend(0, ids[:9], codes[:9])
    states.extend(2, ids[:11], codes[:11])
    poison(states, 2)
    states.copy(0, 2, 7)
    check.close(states.extend(2, ids[7:], codes[7:]), expected, tolerances.LM, "copied")
    states.truncate(0, 5)
    check.close(states.extend(0, ids[5:], codes[5:]), expected, tolerances.LM, "cut")
    assert states.lengths.tolist() == [12, 0, 12]
    # a step of one row, and of those from the first to the last
    one = ids[:1], codes[:1], np.ones(1, bool)
    alone = states.step(2, *one).copy()
    three = np.resize(ids, 3), np.resize(codes, (3, *codes.shape[1:])), np.array([1, 0, 0], bool)
    together = states.step(0, *three)
    check.close(together[:1], alone, tolerances.LM, "the same step in two rows")
    assert states.lengths.tolist() == [13, 0, 13]
    states.close()
    states.close()


def test_threads_that_ask_for_a_piece_load_it_once(
    backend: OrtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, loads = OrtBackend(backend.bundle), []
    real = fresh._load
    monkeypatch.setattr(fresh, "_load", lambda path: loads.append(path) or real(path))
    threads = [threading.Thread(target=fresh.load, args=(["mel"],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


def test_options_of_the_provider_pass_through(backend: OrtBackend) -> None:
    named = [("CPUExecutionProvider", {}), "CPUExecutionProvider"]
    options = {"session.intra_op.allow_spinning": "0"}
    made = OrtBackend(backend.bundle, providers=named[:1], session_options=options)
    assert made.session("mel").get_providers() == ["CPUExecutionProvider"]
    assert (
        made.session_options("mel").get_session_config_entry("session.intra_op.allow_spinning")
        == "0"
    )
    with pytest.raises(EnvironmentProblem, match=r"no NoneExecutionProvider; it has .*CPU"):
        OrtBackend(backend.bundle, providers=["NoneExecutionProvider"])
    assert _named(["CUDAExecutionProvider"]) == {"CUDAExecutionProvider": {"use_tf32": "0"}}
    asked = ("CUDAExecutionProvider", {"use_tf32": "1", "device_id": "1"})
    assert _named([asked])["CUDAExecutionProvider"] == {"use_tf32": "1", "device_id": "1"}


def test_a_cache_that_cannot_grow_is_as_it_was(
    golden: Golden, backend: OrtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, codes = prompt_of(golden, backend, FIRST_CAPACITY)
    states, allocate, left = backend.new_rows(1), backend.memory.allocate, [1]
    states.extend(0, ids, codes)

    def until_memory_ends(shape: Any, dtype: Any) -> Any:
        if not left:
            raise ResourceError("cannot allocate")
        left.pop()
        return allocate(shape, dtype)

    one = ids[:1], codes[:1], np.ones(1, bool)
    with monkeypatch.context() as patch:
        patch.setattr(backend.memory, "allocate", until_memory_ends)
        with pytest.raises(ResourceError):
            states.step(0, *one)
    assert states.lengths[0] == FIRST_CAPACITY
    other = backend.new_rows(1)
    other.extend(0, ids, codes)
    check.equal(states.step(0, *one), other.step(0, *one), "the step, tried again")


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ("Failed to allocate memory for requested buffer of size 99", ResourceError),
        ("std::bad_alloc", ResourceError),
        ("pthread_create failed, error code: 11", ResourceError),
        ("Non-zero status code returned while running Gather", EnvironmentProblem),
    ],
)
def test_errors_of_a_run_are_told(backend: OrtBackend, says: str, kind: type[Exception]) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError(says)

    broken, session = OrtBackend(backend.bundle), SimpleNamespace(run=fail)
    broken._sessions["mel"] = session  # type: ignore[assignment]
    with pytest.raises(kind, match=f"run mel.*{says[:20]}"):
        broken.mel(np.zeros(960, np.float32))


def test_a_gpu_that_is_not_there_is_no_cpu(
    backend: OrtBackend, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wheel that could, on a machine that cannot."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(EnvironmentProblem, match=r"CUDAExecutionProvider|ort-cpu"):
        OrtBackend(backend.bundle, "cuda").session("mel")
    assert capfd.readouterr().out == ""


def test_bf16_is_refused() -> None:
    bundle: Any = SimpleNamespace(piece=lambda name: SimpleNamespace(compute="bf16"))
    with pytest.raises(EnvironmentProblem, match="--dtype fp32 or fp16, or build engines"):
        OrtBackend(bundle)


def test_fp16_on_the_cpu_is_warned_of(
    golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not float32, nor what is quantised and only computed in fp16."""
    half = Bundle.open(exported(golden, golden.lm_names[0], "fp16"))
    held = half.data_bytes(*(piece for piece in half.manifest.pieces if piece != "mel"))
    with pytest.warns(BundleWarning, match=r"become up to .* GB of float32.*quantize") as caught:
        OrtBackend(half)
    assert f" {held / 1e9:.3g} GB of weights become up to {2 * held / 1e9:.3g} GB" in str(
        caught[0].message
    )
    quantize_bundle(half, recipe.load("int8"), tmp_path / "int8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OrtBackend(Bundle.open(tmp_path / "int8"))
        OrtBackend(Bundle.open(exported(golden, golden.lm_names[0])))
    words = ["build", str(half.folder), "--target", "ort-cpu", "--engines", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith("mimo-edge: ") and "is fp16" in line for line in said)


def test_a_bundle_that_changes_while_a_piece_is_read(
    backend: OrtBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was checked is not what the session has."""
    folder = Path(shutil.copytree(backend.bundle.folder, tmp_path / "bundle"))
    opened, load = OrtBackend(Bundle.open(folder, verify=False)), ort.InferenceSession

    def slowly(*args: Any, **more: Any) -> Any:
        data = (folder / "mel.onnx.data").read_bytes()
        (folder / "mel.onnx.data").unlink()
        (folder / "mel.onnx.data").write_bytes(data)
        return load(*args, **more)

    monkeypatch.setattr(ort, "InferenceSession", slowly)
    with pytest.raises(BundleError, match=r"mel.onnx.data has changed since the bundle was opened"):
        opened.session("mel")
