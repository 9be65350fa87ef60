"""Layers of engines that are run elsewhere, from a folder that a report leaves."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from mimo_edge.parity import engine_case_maker
from mimo_edge.parity.bundle_side import identity, machine
from mimo_edge.parity.engine_case import Case, Seen, Stage, look, to_json
from mimo_edge.parity.engine_case_maker import make_case
from mimo_edge.parity.engine_piece import EnginePiece
from mimo_edge.parity.findings import Apart, Layer
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.reference_side import ReferenceSide
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import EngineError, InputError
from mimo_edge.runtime.bundle.files import hash_file
from mimo_edge.runtime.bundle.lock import locked
from mimo_edge.runtime.bundle.manifest import PieceSpec, TensorSpec
from mimo_edge.scripts import bisecting, record
from mimo_edge.scripts.cli import main

from tests.bundles import exported
from tests.engines.conftest import open_on
from tests.engines.fake_cuda import FakeCuda
from tests.engines.fake_tensorrt import FakeTensorRT
from tests.engines.tapped_builds import PRODUCT, FakeBuilds, wrong_product
from tests.engines.test_engine_bisect import AFTER, ALLOWED, BEFORE, FakeEngines
from tests.golden import Golden
from tests.reports.planted import Planted
from tests.reports.test_planted_faults import BUNDLE_FAULTS

SPEC = PieceSpec(
    "tokenizer_decoder.onnx",
    "tokenizer_decoder.onnx.data",
    "fp32",
    {},
    (
        TensorSpec("codes", "int64", ("batch", 8, "frames")),
        TensorSpec("lengths", "int64", ("batch",)),
    ),
    (TensorSpec("wav", "float32", ("batch", "samples")),),
)


def test_without_a_gpu_the_layers_are_left_to_the_device(
    golden: Golden,
    own: Recording,
    fake_engines: FakeEngines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A recording fails here; one engine that shows all states is built, and the command that is
    named runs it on the device, where it names the layer or says that the error is gone."""
    bundle, _ = fake_engines(golden.lm_names[0], fault=wrong_product)
    arrays = {n: a * 1.05 if n.startswith("logits/") else a for n, a in own.arrays.items()}
    ran = {"runs_on": f"trt-rtx {FakeTensorRT.__version__} on compute capability 8.9"}
    mine = identity(bundle) | machine() | ran
    replace(own, identity=mine, lead=mine["id"], arrays=arrays).save(tmp_path / "rec")
    (tmp_path / "graphs").mkdir()
    builds = FakeBuilds(tmp_path / "graphs", wrong_product)
    monkeypatch.setattr(engine_case_maker, "build_apart", builds)
    monkeypatch.setattr(bisecting, "load_module", lambda _: FakeTensorRT)
    pair = [golden.folder / name for name in (golden.lm_names[0], "audio_tokenizer")]
    command = ["validate", tmp_path / "rec", "--against", pair[0], "--audio-tokenizer", pair[1]]
    command += ["--text-tokenizer", golden.folder / "text_tokenizer", "--bisect"]
    command += ["--bisect-bundle", bundle.folder, "-o", tmp_path / "report"]
    assert main([str(word) for word in command]) == 5
    out = capsys.readouterr().out
    assert {p.name for p in tmp_path.glob("*rep*")} == {"report", "report-layers"}
    assert len(builds.shown) == 2  # patch encoder and backbone, from which the scores come
    told = out[out.index("mimo-edge record") :].split("\n")[0].split()
    assert told[2:] == [
        *(bundle.folder.name, "--backend", "trt-rtx"),
        *("--layers", "report-layers", "-o", "layers.json"),
    ]
    monkeypatch.setattr(record, "open_backend", lambda *_, **__: open_on(bundle, FakeCuda()))
    layers, made = tmp_path / "report-layers", tmp_path / "layers.json"
    told = ["record", bundle.folder, *told[3:5], "--layers", layers, "-o", made]

    def looked() -> tuple[dict[str, Any], str]:
        assert main([str(word) for word in told]) == 0
        (seen,) = json.loads(made.read_text(encoding="utf-8"))
        said = capsys.readouterr().out
        assert seen["sentence"] in said and seen["stage"] == "backbone, prefill"
        made.unlink()
        return seen, said

    seen, said = looked()
    assert f"between {BEFORE} and {AFTER}" in said and PRODUCT in said and seen["wrong"]
    request, graph = builds.asked[1]
    right = FakeBuilds(tmp_path / "right")  # as if all its outputs kept TensorRT from its error
    (tmp_path / "right").mkdir()
    right(request, onnx.load_from_string(graph), layers / "backbone.plan")
    raw = json.loads((layers / "layers.json").read_text(encoding="utf-8"))
    raw["plans"]["backbone"] = asdict(hash_file(layers / "backbone.plan"))
    (layers / "layers.json").write_text(json.dumps(raw), encoding="utf-8")
    seen, said = looked()
    assert "the error is gone" in said and not seen["wrong"]
    assert seen["weights"] == [] and "weights there" not in said
    for option in (["--audio", "x.wav"], ["--text", "x"], ["--inputs", "x"], ["--polygraphy", "x"]):
        assert main([*map(str, told), *option]) == 2
        assert f"leave out {option[0]}" in capsys.readouterr().err
    with locked(made):
        assert main([str(word) for word in told]) == 2
    assert "is being written by process" in capsys.readouterr().err
    with (layers / "backbone.plan").open("ab") as plan:
        plan.write(b"more")
    assert main([str(word) for word in told]) == 6
    assert "backbone.plan is truncated or altered. Copy the folder again" in capsys.readouterr().err
    assert not made.exists()

    # what cannot be built is said in the report, which is written all the same
    def refuse(*_: Any) -> None:
        raise EngineError("TensorRT does not build patch_encoder.onnx as it is")

    monkeypatch.setattr(engine_case_maker, "build_apart", refuse)
    assert main([str(word) for word in command]) == 5
    assert "no engine that shows its layers. TensorRT does not" in capsys.readouterr().out
    assert (layers / "layers.npz").is_file()  # what was there is kept
    monkeypatch.setattr(FakeTensorRT, "__version__", "1.8")
    assert main([str(word) for word in command]) == 3
    assert "here is 1.8, whose engines would not load there" in capsys.readouterr().err


def test_layers_of_another_bundle_are_refused(
    golden: Golden, fake_engines: FakeEngines, own: Recording, tmp_path: Path
) -> None:
    bundle, _ = fake_engines(golden.lm_names[0])
    Case("another", (), {}).save(tmp_path)
    with open_on(bundle, FakeCuda()) as backend:
        with pytest.raises(InputError, match="is of the bundle another"):
            look(tmp_path, backend)
        (tmp_path / "layers.npz").write_bytes(b"cut")
        with pytest.raises(InputError, match="holds no layers to look at"):
            look(tmp_path, backend)


def test_heads_follow_the_norm_and_not_each_other(
    golden: Golden,
    reference: ReferenceSide,
    own: Recording,
    fake_engines: FakeEngines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a bisection names it, of the same fault."""
    plant, stage, after, tap, weight = BUNDLE_FAULTS["rolled head of the patch decoder"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # others plant the same
    planted = Planted(exported(golden, golden.lm_names[0]), tmp_path / "bundle")
    plant(planted)
    bundle, _ = fake_engines(golden.lm_names[0], bundle=Bundle.open(planted.folder))
    (tmp_path / "graphs").mkdir()
    (tmp_path / "layers").mkdir()
    monkeypatch.setattr(engine_case_maker, "build_apart", FakeBuilds(tmp_path / "graphs"))
    with open_on(bundle, FakeCuda()) as backend:
        given = (own, stage, ALLOWED, tmp_path / "layers")
        make_case(reference, bundle, backend.identity, *given, lambda *_: None)
        (seen,) = look(tmp_path / "layers", backend)
    wrong = [layer.tap for layer in seen.layers if not layer.passed]
    assert wrong[0] == tap == "scores_3", "some heads before it are right"
    assert f"between {after} and {tap} (" in seen.sentence()
    assert weight in seen.weights


def small(folder: Path) -> None:
    """A case of two runs, the first of which only warms up."""
    feed = {"codes": np.zeros((1, 8, 3), np.int64), "lengths": np.array([3])}
    profile = {"codes": ((1, 8, 1), (1, 8, 3), (1, 8, 4)), "lengths": ((1,), (1,), (1,))}
    values = {"a.norm": [np.ones(4, np.float32)], "wav": [np.ones((1, 3), np.float32)]}
    stage = Stage(
        *("tokenizer_decoder", "tokenizer_decoder", ALLOWED, profile, 1),
        {"a.norm": ["a.weight"]},
        {"a.norm": [0], "wav": [0]},
        [feed, feed],
        values,
    )
    (folder / "tokenizer_decoder.plan").write_bytes(b"plan")
    plans = {"tokenizer_decoder": hash_file(folder / "tokenizer_decoder.plan")}
    Case("0" * 64, (stage,), plans).save(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("counts", None), ("counts", {"wav": [0]}), ("counts", {"a.norm": [1], "wav": [0]})),
        *(("counts", {"a.norm": [0], "wav": []}), ("counts", {"a.norm": "0", "wav": [0]})),
        *(("warm", "x"), ("warm", 2), ("warm", -1), ("warm", True), ("warm", None)),
        *(("taps", [1]), ("taps", {}), ("taps", {"a.norm": "a.weight"}), ("taps", {"b": []})),
        *(("piece", 5), ("piece", "other"), ("piece", []), ("stage", 1)),
        *(("allowed", "85"), ("allowed", None), ("allowed", float("nan"))),
        *(("profile", None), ("profile", {"codes": [3]}), ("more", 1)),
    ],
)
def test_a_damaged_case_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    small(tmp_path)
    (stage,) = Case.open(tmp_path).stages
    assert stage.warm == 1 and len(stage.feeds) == 2
    raw = json.loads((tmp_path / "layers.json").read_text(encoding="utf-8"))
    raw["stages"][0][name] = value
    (tmp_path / "layers.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(InputError, match=r"holds no layers to look at \(\w+: "):
        Case.open(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("bundle", 1), ("plans", {}), ("plans", [1])])
def test_a_damaged_header_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    small(tmp_path)
    raw = json.loads((tmp_path / "layers.json").read_text(encoding="utf-8")) | {name: value}
    (tmp_path / "layers.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(InputError, match="holds no layers to look at"):
        Case.open(tmp_path)


@pytest.mark.parametrize("left_out", ["feed/0/codes", "feed/1/lengths", "feed/1/", "theirs/0/wav"])
def test_a_feed_that_lacks_a_port_is_refused(tmp_path: Path, left_out: str) -> None:
    small(tmp_path)
    with np.load(tmp_path / "layers.npz") as arrays:
        kept = {name: arrays[name] for name in arrays if not name.startswith(f"0/{left_out}")}
    np.savez(tmp_path / "layers.npz", **kept)
    with pytest.raises(InputError, match=r"holds no layers|feeds tokenizer_decoder otherwise"):
        look(tmp_path, only_a_bundle())


@pytest.mark.parametrize(
    "shape", [[1, 8], [1, 8, 0], [1, 8, 4, 1]], ids=["short", "nothing", "long"]
)
def test_a_profile_of_other_ports_is_refused(tmp_path: Path, shape: list[int]) -> None:
    small(tmp_path)
    raw = json.loads((tmp_path / "layers.json").read_text(encoding="utf-8"))
    raw["stages"][0]["profile"]["codes"][2] = shape
    (tmp_path / "layers.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(InputError, match="feeds tokenizer_decoder otherwise"):
        look(tmp_path, only_a_bundle())


def only_a_bundle() -> Any:
    """In the place of a backend that no engine is asked of."""
    bundle = SimpleNamespace(identity="0" * 64, folder=Path("bundle"), piece=lambda _: SPEC)
    return SimpleNamespace(bundle=bundle)


def test_what_was_seen_is_json() -> None:
    """An exact copy is infinitely near, which JSON has no number for."""
    near = Layer("backbone, prefill", "a.norm", float("inf"), ALLOWED)
    apart = Apart(float("inf"), 0.0, None)
    seen = Seen("backbone, prefill", (near,), (), "logits", apart, True)

    def fail(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    (read,) = json.loads(to_json([seen]), parse_constant=fail)
    assert read["layers"][0]["snr"] == read["own"]["snr"] == "Infinity"
    assert read["sentence"] == seen.sentence()


def test_a_cache_is_cast_before_it_is_padded() -> None:
    """What a file holds in 32 bits, for a port of 16."""
    port = TensorSpec("past_keys_0", "bfloat16", ("batch", 2, "capacity"))
    profile = {"past_keys_0": ((1, 2, 6),) * 3}
    backend: Any = SimpleNamespace(device=None)
    spec = replace(SPEC, inputs=(port,))
    piece = EnginePiece(backend, None, spec, profile)  # type: ignore[arg-type]
    fitted = piece._fitted(port, np.ones((1, 2, 4), np.float32))
    assert str(fitted.dtype) == "bfloat16" and fitted.shape == (1, 2, 6)
    assert fitted.astype(np.float32).sum() == 8
