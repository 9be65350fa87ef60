"""Packs: what one device needs of a bundle, runs like it, and is refused where it does not fit."""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tensorrt_rtx
from mimo_edge.engines.pack import Engines, pack_bundle, spelled
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.bundle.built import built_here, place_of
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import read
from mimo_edge.runtime.bundle.engine_folders import INSIDE, Trust, Wanted, find
from mimo_edge.runtime.bundle.errors import BundleError, EngineError, InputError
from mimo_edge.runtime.bundle.manifest import IN_FILE, IN_MEMORY, MANIFEST, PIECES
from mimo_edge.runtime.bundle.pack import PACK
from mimo_edge.scripts.cli import main, parser_of

from tests.bundles import exported
from tests.engines.conftest import open_on
from tests.engines.fake_builds import Builds
from tests.engines.fake_cuda import FakeCuda
from tests.engines.fake_tensorrt import FakeTensorRT
from tests.golden import Golden


@pytest.fixture
def packed(bundle: Bundle, tmp_path: Path) -> Path:
    pack_bundle(bundle, "ort-cpu", tmp_path / "device")
    return tmp_path / "device"


def test_a_pack_says_the_same_as_its_bundle(golden: Golden, tmp_path: Path) -> None:
    """Also when the bundle is gone: nothing in a pack is a link."""
    source = tmp_path / "bundle"
    shutil.copytree(exported(golden, golden.lm_names[0]), source)
    said, heard = {}, {}
    device = tmp_path / "device"
    for folder in (source, device):
        out = tmp_path / f"{folder.name}.wav"
        if folder == device:
            assert main(["pack", str(source), "--target", "ort-cpu", "-o", str(device)]) == 0
            shutil.rmtree(source)
        command = ["run", "tts", str(folder), "Hello.", "-o", str(out), "--seed", "3"]
        assert main([*command, "--max-new", "6"]) == 0
        said[folder.name] = out.read_bytes()
        with open_backend("ort-cpu", Bundle.open(folder)) as backend:
            heard[folder.name] = backend.mel(np.zeros(4800, np.float32))
    assert said["bundle"] == said["device"]
    assert np.array_equal(heard["bundle"], heard["device"])


def test_it_is_said_whether_a_build_was_packed(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And without one, which command makes the faster pack."""
    device = tmp_path / "device"
    words = ["pack", str(bundle.folder), "--target", "ort-cpu", "-o", str(device)]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert f"{device}: for ort-cpu, the bundle as it is, " in out
    advice = re.search(r"packing the bundle as it is.* is faster: mimo-edge (.*)", err)
    assert advice is not None
    advised = advice[1].split()
    asked = vars(parser_of(advised)[0].parse_args(advised))
    assert (asked["bundle"], asked["output"]) == (bundle.folder, device)
    assert asked["packed"] == IN_FILE and asked["force"]

    place = place_of(bundle, onnxruntime.__version__)
    shutil.copytree(bundle.folder, place)
    made_for = built_here(bundle, onnxruntime.__version__, {}, IN_MEMORY, "0" * 64)
    manifest = dataclasses.replace(bundle.manifest, built=made_for)
    (place / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    form = "weights packed in memory, keys and values in int8"
    for source in (bundle.folder, place):  # a build is packed by its own path, too
        words[1] = str(source)
        assert main([*words, "--force", "--json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["carries"] == f"a build with {form}"
        assert (f"packing the build in {place}: {form}" in err) == (source == bundle.folder)
        assert Bundle.open(device).manifest == manifest


def test_without_onnxruntime_the_bundle_is_packed_as_it_is(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    command = ["pack", str(bundle.folder), "--target", "ort-cpu", "-o", str(tmp_path / "device")]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "the bundle as it is" in out
    assert re.search(r"as it is: .* no ONNX Runtime is installed\. Choose a variant: .*pip", err)


def test_its_identity_leads_back(bundle: Bundle, packed: Path) -> None:
    opened = Bundle.open(packed)
    assert opened.pack is not None and opened.pack.target == "ort-cpu"
    assert opened.pack.packed_from == opened.identity == bundle.identity
    assert opened.manifest == bundle.manifest, "checkpoint, recipe and tools are in it"


def test_no_more_than_is_needed(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.folder / INSIDE / "some").mkdir(parents=True)
    (bundle.folder / INSIDE / "some" / "mel.plan").write_bytes(b"a program")
    (bundle.folder / "notes.txt").write_text("not in the manifest")
    pack_bundle(bundle, "ort-cpu", tmp_path / "device")
    found = {path.name for path in (tmp_path / "device").iterdir()}
    assert found == {MANIFEST, PACK, *bundle.manifest.files}


@pytest.mark.parametrize("name", ["backbone.onnx", "backbone.onnx.data", MANIFEST])
def test_damage_is_refused(packed: Path, name: str) -> None:
    path = packed / name
    content = path.read_bytes()
    if name == MANIFEST:  # another text that is as long, and that is read
        changed = content.replace(b'"recipe": "fp32"', b'"recipe": "fp23"')
    else:
        changed = bytes([content[0] ^ 1]) + content[1:]
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(BundleError, match=name):
        Bundle.open(packed)
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=name):
        Bundle.open(packed, verify=False)
    path.unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(packed, verify=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", 2),
        ("target", "toaster"),
        ("target", 8.9),
        ("packed_from", "0" * 63),
        ("tools", []),
        ("files", {}),
        ("files", {"../bundle.json": {"sha256": "0" * 64, "bytes": 1}}),
        ("files", {MANIFEST: {"sha256": "0" * 64, "bytes": -1}}),
        ("files", {MANIFEST: {"sha256": 7, "bytes": 1}}),
        ("files", None),
    ],
)
def test_a_pack_file_that_is_none(packed: Path, key: str, value: object) -> None:
    raw = json.loads((packed / PACK).read_text())
    (packed / PACK).write_text(json.dumps(raw | {key: value}))
    with pytest.raises(BundleError, match=r"pack\.json is damaged.*pack the bundle again"):
        Bundle.open(packed)


def test_a_pack_file_of_another_bundle(packed: Path) -> None:
    raw = json.loads((packed / PACK).read_text())
    (packed / PACK).write_text(json.dumps(raw | {"packed_from": "0" * 64}))
    with pytest.raises(BundleError, match="of another bundle"):
        Bundle.open(packed, verify=False)


def test_a_damaged_bundle_is_not_packed(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.folder / "backbone.onnx.data"
    path.write_bytes(bytes([1]) + path.read_bytes()[1:])
    with pytest.raises(BundleError, match=r"backbone\.onnx\.data was altered"):
        pack_bundle(Bundle.open(bundle.folder, verify=False), "ort-cpu", tmp_path / "device")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_refusals(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BundleError, match="for ort-cpu, not for ort-cuda"):
        open_backend("ort-cuda", Bundle.open(packed))
    out = str(tmp_path / "out")
    for command, words in (
        (["pack", str(packed), "--target", "ort-cpu", "-o", out], "To pack, take the bundle"),
        (["quantize", str(packed), "--recipe", "int8", "-o", out], "To quantise, take the bundle"),
        (["build", str(packed), "--target", "trt-rtx:8.9"], "To build, take the bundle"),
        (["pack", str(packed), "--target", "tpu", "-o", out], "there is no target 'tpu'"),
        (
            ["pack", str(packed), "--target", "ort-cpu", "-o", out, "--max-seq", "9"],
            "--max-seq is of engines",
        ),
    ):
        assert main(command) == 2
        assert words in capsys.readouterr().err
    assert spelled("trt-rtx:8.9,8.9,12.0") == "trt-rtx:8.9,12.0" and spelled("trt") == "trt"


def test_only_what_is_a_bundle_is_replaced(bundle: Bundle, packed: Path) -> None:
    with pytest.raises(InputError, match="--force"):
        pack_bundle(bundle, "ort-cpu", packed)
    (packed / "left.txt").write_text("over")
    pack_bundle(bundle, "ort-cpu", packed, force=True)
    assert not (packed / "left.txt").exists() and Bundle.open(packed).pack is not None


def test_engines_in_a_pack(
    golden: Golden, fake_engines: Callable[..., tuple[Bundle, Path]], tmp_path: Path
) -> None:
    """No graph and no weights beside the plans; the same numbers; only who is trusted runs."""
    bundle, folder = fake_engines(golden.lm_names[0])
    (folder / "mel.log").write_text("what the builder said")
    device = tmp_path / "device"
    pack_bundle(bundle, "trt-rtx:8.6,8.9", device, Engines(folder, read(folder)))
    opened = Bundle.open(device)
    assert not list(device.rglob("*.onnx*")) and not list(device.rglob("*.log"))
    assert {path.stem for path in device.rglob("*.plan")} == set(PIECES)
    wav = np.sin(np.arange(4800, dtype=np.float32))
    with open_on(opened, FakeCuda(), trust=Trust(bundle=True)) as backend:
        heard = backend.mel(wav)
    with open_on(bundle, FakeCuda()) as backend:
        assert np.array_equal(backend.mel(wav), heard)

    version = FakeTensorRT.__version__
    shutil.rmtree(folder)  # the cache folder's: it would be found by what it was built from
    with pytest.raises(EngineError, match=r"say so with --trust-engines"):
        find(opened, Wanted("trt-rtx", version, "8.6"))
    with pytest.raises(EngineError, match=r"GPU has 12\.0.*\n.*pack BUNDLE --target trt-rtx:12"):
        find(opened, Wanted("trt-rtx", version, "12.0"), Trust(bundle=True))
    with pytest.raises(BundleError, match="engines and no graph of mel"):
        opened.path("mel")
    plan = next(device.rglob("backbone.plan"))
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"backbone\.plan is truncated"):
        find(opened, Wanted("trt-rtx", version, "8.6"), Trust(bundle=True))


def test_a_damaged_plan_is_not_packed(
    golden: Golden, fake_engines: Callable[..., tuple[Bundle, Path]], tmp_path: Path
) -> None:
    bundle, folder = fake_engines(golden.lm_names[0])
    (folder / "mel.plan").write_bytes(b"x" + (folder / "mel.plan").read_bytes()[1:])
    with pytest.raises(EngineError, match=r"mel\.plan is truncated or altered"):
        pack_bundle(bundle, "trt-rtx:8.9", tmp_path / "device", Engines(folder, read(folder)))
    assert not list(tmp_path.iterdir())


def test_inspect_and_doctor_understand_packs(
    packed: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(packed)]) == 0
    assert "packed from that bundle for ort-cpu" in capsys.readouterr().out
    assert main(["doctor", str(packed)]) == 0
    assert "ok  run device" in capsys.readouterr().out
    assert main(["doctor", str(bundle.folder)]) == 2
    raw = json.loads((packed / PACK).read_text())
    (packed / PACK).write_text(json.dumps(raw | {"target": "ort-cuda"}))
    assert main(["doctor", str(packed)]) == 3
    assert "--  run device" in capsys.readouterr().out


def test_doctor_on_engines(
    golden: Golden,
    fake_engines: Callable[..., tuple[Bundle, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Made by another version than is here."""
    bundle, folder = fake_engines(golden.lm_names[0])
    device, manifest = tmp_path / "device", read(folder)
    pack_bundle(bundle, "trt-rtx:8.6,8.9", device, Engines(folder, manifest))
    assert main(["doctor", str(device)]) == 3
    out = capsys.readouterr().out
    assert f"trt-rtx {manifest.identity.version}; here is" in out and "mimo-edge pack" in out
    shutil.rmtree(device / INSIDE)
    assert main(["doctor", str(device)]) == 3
    assert "it has 0 folders of engines" in capsys.readouterr().out


def test_command_builds_what_is_not_there(
    bundle: Bundle,
    builds: Builds,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The engines stay where they are built, and a second pack builds nothing."""
    device = tmp_path / "device"
    command = ["pack", str(bundle.folder), "--target", "trt-rtx:8.9", "--max-seq", "32"]
    assert main([*command, "-o", str(device), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["target"] == "trt-rtx:8.9" and told["packed_from"] == bundle.identity
    assert told["bytes"] == sum(p.stat().st_size for p in device.rglob("*") if p.is_file())
    assert builds.graphs == list(PIECES)
    opened = Bundle.open(device)
    wanted = Wanted("trt-rtx", tensorrt_rtx.__version__, "8.9")
    folder, manifest = find(opened, wanted, Trust(bundle=True))
    assert manifest.identity.max_seq == 32

    assert main([*command, "-o", str(device), "--force"]) == 0
    assert f"{device}: for trt-rtx:8.9" in capsys.readouterr().out
    assert builds.graphs == list(PIECES)
    inside = device / INSIDE / folder.name
    assert {path.name for path in inside.iterdir()} == {
        "engine.json",
        *(f"{piece}.plan" for piece in PIECES),
    }
    assert not any(path.stat().st_nlink > 1 for path in inside.iterdir()), "copies, no links"
