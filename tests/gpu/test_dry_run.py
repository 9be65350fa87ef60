"""The kit for a bare machine with a GPU, on the CPU: the same steps on the same code path."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.engines.recipe import load
from mimo_edge.runtime.backends.ort import PROVIDERS
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.scripts.gpu import measure, placement
from mimo_edge.scripts.gpu.__main__ import run
from mimo_edge.scripts.gpu.fill import fill
from mimo_edge.scripts.gpu.hollow import hollow
from mimo_edge.scripts.gpu.join import join, link
from mimo_edge.scripts.gpu.kit import own_metadata, pack
from mimo_edge.scripts.gpu.places import CODES
from mimo_edge.scripts.gpu.records import Record, Records, read_records, table
from mimo_edge.scripts.gpu.runner import LOG, Planned, run_steps
from mimo_edge.scripts.gpu.settings import Settings
from mimo_edge.scripts.gpu.slim import CONTAINER, ENTRY, slim
from mimo_edge.scripts.gpu.steps import run_step

from tests.bundles import exported, exported_nano
from tests.golden import Golden

ROOT = Path(__file__).parents[2]
SAID = "The number is fifty one."


@pytest.fixture(scope="module")
def kit(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `join` leaves, but for the packages, which are here."""
    folder = tmp_path_factory.mktemp("kit")
    (folder / "bundles").mkdir()
    source = exported(golden, golden.lm_names[0])
    (folder / "bundles" / "golden").symlink_to(source)
    (folder / "bundles" / "nano").symlink_to(exported_nano())
    bundle = Bundle.open(source)
    hollow(bundle, folder / "hollow" / "fp32")
    hollow(bundle, folder / "hollow" / "int4", load("int4"))
    (folder / "site").mkdir()
    link(folder / "site")
    return folder


@pytest.fixture(scope="module")
def settings(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """As little as possible of everything."""
    out = tmp_path_factory.mktemp("out")
    utterances = out / "utterances"
    utterances.mkdir()
    (utterances / "a.flac").write_bytes((ROOT / "assets/utterances/listen-01.flac").read_bytes())
    said = {"asr": [{"audio": "a.flac", "text": SAID}], "tts": [SAID], "dialogue": []}
    (utterances / "utterances.json").write_text(json.dumps(said))
    own = {task: {"edits": 0, "words": 5, "right": 1, "utterances": 1} for task in ("asr", "tts")}
    (out / "score.json").write_text(json.dumps(own))
    return Settings(
        kit=kit,
        out=out,
        work=out / "work",
        device="cpu",
        models=("int4",),
        rows=(1, 2),
        runs=1,
        prompts=(4, 8),
        preset="tiny",
        tests="moved",
        utterances=utterances,
        against=out / "score.json",
    )


def test_the_whole_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step ends well and writes down what a reader of the table looks for; the tree is found
    as on a machine where it is not installed."""
    monkeypatch.setenv("PYTHONPATH", str(settings.kit / "site"))
    well = run(settings, 120)
    log = (settings.out / LOG).read_text()
    assert well, log
    found: dict[str, dict[str, Record]] = {}
    for record in read_records(settings.out):
        found.setdefault(record.step, {})[record.what] = record
    assert list(found) == [
        *("placement", "goldens", "score"),
        *("fill-int4", "measure-int4", "baseline"),
    ]
    assert all(step.popitem()[0] == "[done]" for step in found.values())
    assert "elsewhere: none" in str(found["placement"]["nano backbone"].value)
    assert "passed" in str(found["goldens"]["test_rows_that_are_moved"].value)
    assert found["score"]["asr"].value == "0 of 5 words wrong"
    for model in settings.models:
        measured = found[f"measure-{model}"]
        for rows in settings.rows:
            assert float(measured[f"patch, {rows} rows: RTF"].value) > 0
        wanted = ("prefill, 8 patches", "windowed, 6 patches", "stateful, 6 patches")
        for what in (*wanted, "first sound, prompt of 4 patches", "copy, bytes read and written"):
            assert float(measured[what].value) > 0, what
        graphs = "patch, 2 rows, graphs of patch_encoder and backbone"
        assert float(measured[graphs].value) > 0
    assert float(found["baseline"]["patch, 1 rows"].value) > 0
    text = (settings.out / "table.txt").read_text()
    assert text == table(read_records(settings.out)) and "RTF" in text


def test_a_step_of_another_name(settings: Settings) -> None:
    with pytest.raises(InputError, match="no step fill; choose of placement, goldens, "):
        run(settings, 1, ["fill"])


def test_steps_that_fail_stop_nothing(tmp_path: Path) -> None:
    """One that fails, one that hangs, one that has no time left; what was found is kept."""
    find = (
        "from mimo_edge.scripts.gpu.records import *; from pathlib import Path; import time, os\n"
    )
    codes = {
        "fails": "os.abort()",
        "hangs": "Records(Path('.'), 'hangs').add('before', 1.0, 'ms'); time.sleep(60)",
        "works": "print('so')",
        "late": "print('never')",
    }
    begun = Records(tmp_path, "fails")
    begun.add("x", 2.0, "s")
    chdir = f"import os; os.chdir({str(tmp_path)!r}); "
    said: list[str] = []
    steps = [Planned("fails", 30), Planned("hangs", 1.5), Planned("works", 30), Planned("late", 60)]

    def command(step: str) -> list[str]:
        return [sys.executable, "-c", chdir + find + codes[step]]

    assert not run_steps(steps[:3], 60, tmp_path, command, said.append)
    assert not run_steps(steps[3:], 4.0, tmp_path, command, said.append)
    ends = [record.what for record in read_records(tmp_path) if record.what.startswith("[")]
    assert ends[0].startswith("[failed with -6") and ends[1] == "[cut after its 2 s]"
    assert ends[2:] == ["[done]", "[not begun: no time is left]"]
    assert "before" in (tmp_path / "table.txt").read_text()
    assert "so\n" in (tmp_path / LOG).read_text()


@pytest.mark.parametrize(("ended", "told"), [("[done]", False), ("[cut after its 25 s]", True)])
def test_weights_that_were_not_all_drawn_are_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: str, told: bool
) -> None:
    """What is half filled is measured all the same: it costs as much."""
    monkeypatch.setattr(measure.Measure, "__init__", lambda *_: None)
    monkeypatch.setattr(measure.Measure, "all", lambda _: True)
    Records(tmp_path, "fill-int4").add(ended, 25.0, "s")
    Records(tmp_path, "fill-other").add("[done]", 25.0, "s")
    assert run_step("measure-int4", replace(settings, out=tmp_path))
    found = [record.value for record in read_records(tmp_path) if record.step == "measure-int4"]
    assert ["zeros" in str(value) for value in found] == [True] * told


def test_a_cut_line_is_left_out(tmp_path: Path) -> None:
    Records(tmp_path, "one").add("what", 1.5, "ms")
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"step": "one", "wha')
    (record,) = read_records(tmp_path)
    assert (record.what, record.value, record.unit) == ("what", 1.5, "ms")


def test_a_filled_bundle_is_the_bundle_but_for_its_weights(
    kit: Path, golden: Golden, tmp_path: Path
) -> None:
    source = Bundle.open(exported(golden, golden.lm_names[0]))
    fill(kit / "hollow" / "fp32", tmp_path / "filled")
    filled = Bundle.open(tmp_path / "filled", verify=False)
    for piece in source.manifest.pieces:
        assert filled.path(piece).read_bytes() == source.path(piece).read_bytes()
        assert filled.weights(piece).bytes == source.weights(piece).bytes
    data = (filled.folder / "mel.onnx.data").read_bytes()
    assert data == (source.folder / "mel.onnx.data").read_bytes(), "it holds constants alone"
    weights = np.fromfile(filled.folder / "backbone.onnx.data", np.float32)
    assert np.isfinite(weights).all() and (weights != 0).mean() > 0.9


def test_hollow_codes_spread_as_weights(kit: Path) -> None:
    places = json.loads((kit / "hollow" / "int4" / "places.json").read_text())
    by_name = {(place["piece"], place["name"]): place for place in places}
    scales = {key: place for key, place in by_name.items() if place["spread"] is not None}
    assert {by_name[piece, n.removesuffix("_scales")]["dtype"] for piece, n in scales} == set(CODES)
    for (piece, name), place in scales.items():
        codes = by_name[piece, name.removesuffix("_scales")]
        drawn = np.arange(CODES[codes["dtype"]]) - CODES[codes["dtype"]] / 2
        assert drawn.std() * place["spread"] == pytest.approx(codes["shape"][0] ** -0.5, rel=0.01)


def test_heavy_operators_elsewhere_are_wrong(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on a GPU that leaves attention on the CPU must not pass for one."""
    from mimo_edge.runtime.backends.ort import OrtBackend

    bundle = Bundle.open(exported(golden, golden.lm_names[0]))
    found = Counter(
        {("CUDAExecutionProvider", "Attention"): 3, ("CPUExecutionProvider", "Shape"): 2}
    )
    monkeypatch.setattr(placement, "placements", lambda session: found)
    monkeypatch.setattr(placement, "PROVIDERS", PROVIDERS | {"cpu": "CUDAExecutionProvider"})
    with OrtBackend(bundle) as backend:
        assert placement.record_placements(backend, "golden", Records(tmp_path, "placement"))
        found["CPUExecutionProvider", "MatMulNBits"] = 1
        assert not placement.record_placements(backend, "golden", Records(tmp_path, "placement"))
    assert "WRONG: {'MatMulNBits': 1}" in table(read_records(tmp_path))


def test_parts_are_joined(tmp_path: Path) -> None:
    """On a machine that has Python and this tree, and nothing else."""
    kit, content = tmp_path / "kit", np.random.default_rng(0).bytes(50_000)
    (kit / "site").mkdir(parents=True)
    (kit / "site" / "some.py").write_bytes(content)
    out = tmp_path / "parts"
    out.mkdir()
    parts = pack(kit, out, 20_000)
    assert [part.stat().st_size for part in parts[:-1]] == [20_000] * (len(parts) - 1)
    assert len(parts) == 3
    join = [sys.executable, "-S", "-I", ROOT / "scripts/gpu/join.py", out, tmp_path / "joined"]
    done = subprocess.run(join, capture_output=True, text=True, check=True)
    assert "-P -m mimo_edge.scripts.gpu run" in done.stdout
    site = tmp_path / "joined" / "site"
    assert (site / "some.py").read_bytes() == content
    for name in ("__init__.py", "runtime/__init__.py", "scripts/gpu/fill.py"):
        source = ROOT / ("mimo_edge" if name == "__init__.py" else "") / name
        assert (site / "mimo_edge" / name).read_bytes() == source.read_bytes()
    assert (site / "tests" / "gpu").samefile(ROOT / "tests" / "gpu")


def test_the_version_goes_along_from_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone has what an installer left in it, which is found first when it is worked in."""
    (tmp_path / "mimo_edge.egg-info").mkdir()
    about = "Metadata-Version: 2.4\nName: mimo-edge\nVersion: 9.9\n"
    (tmp_path / "mimo_edge.egg-info" / "PKG-INFO").write_text(about)
    monkeypatch.syspath_prepend(str(tmp_path))
    own_metadata(tmp_path)
    assert (tmp_path / "mimo_edge-9.9.dist-info" / "METADATA").read_text() == about


def test_a_missing_part(tmp_path: Path) -> None:
    for number in (0, 2):
        (tmp_path / f"kit.tar.xz.{number:03}").write_bytes(b"x")
    with pytest.raises(SystemExit, match=r"has the parts \[0, 2\]: some are missing"):
        join(tmp_path, tmp_path / "kit")


def test_code_of_other_gpus_is_zeroed(tmp_path: Path) -> None:
    """Two containers with two architectures each, and numbers that only look like one."""

    def entry(architecture: int, content: bytes) -> bytes:
        header = ENTRY.pack(2, 0x101, 64, len(content)).ljust(28) + architecture.to_bytes(
            4, "little"
        )
        return header.ljust(64, b"h") + content

    def container(*entries: bytes) -> bytes:
        inside = b"".join(entries)
        return CONTAINER + len(inside).to_bytes(8, "little") + inside

    parts = [
        b"ELF and more",
        container(entry(80, b"old" * 5), entry(90, b"new" * 9)),
        CONTAINER + (1 << 40).to_bytes(8, "little") + b"no container",
        container(entry(90, b"newer" * 3), entry(120, b"newest" * 4)),
        b"end",
    ]
    path = tmp_path / "library.so"
    path.write_bytes(b"".join(parts))
    assert slim(path, 100) == {80: 15, 90: 42, 120: 24}
    assert path.read_bytes() == b"".join(parts), "nothing for that GPU: it stays as it was"
    slim(path, 90)
    expected = b"".join(parts).replace(b"old" * 5, bytes(15)).replace(b"newest" * 4, bytes(24))
    assert path.read_bytes() == expected
