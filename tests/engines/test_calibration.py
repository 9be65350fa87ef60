"""`calibrate`: what layers read, counted on the real pipeline; files that are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.calibration import CACHE, About, Calibration, Statistics
from mimo_edge.engines.observed_graph import STATISTICS, observe, read, sites_of
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.runtime.audio.write import write_audio
from mimo_edge.runtime.backends.ort import ACCURACY, EXACT
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import AudioError, CalibrationError, InputError
from mimo_edge.runtime.bundle.manifest import MANIFEST
from mimo_edge.runtime.chat.scripts import script_of
from mimo_edge.scripts import observing
from mimo_edge.scripts.calibrating import Work, calibrate, lines, recordings
from mimo_edge.scripts.cli import main
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import exported
from tests.golden import Golden

TEXTS = ("Good morning.", "今天是星期一。")
FEW = 3  # patches of an answer


@pytest.fixture(scope="module")
def bundle(golden: Golden) -> Bundle:
    return Bundle.open(exported(golden, golden.lm_names[0]))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("recordings")
    noise = np.random.default_rng(0).normal(0, 0.1, 12_000).astype(np.float32)
    (folder / "en").mkdir()
    write_audio(folder / "en" / "noise.wav", noise, 24_000)
    return Work(folder, recordings(folder), TEXTS, seed=5)


@pytest.fixture(scope="module")
def found(
    bundle: Bundle, work: Work, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Calibration, Path]:
    path = tmp_path_factory.mktemp("calibration") / "calib.npz"
    calibrate(bundle, work, path, longest=FEW, threads=1)
    return Calibration.load(path), path


def test_a_graph_tells_what_its_layers_read() -> None:
    """Of a float layer and a quantised one that read the same tensor, and of one that reads what
    they make; over two runs."""
    rng = np.random.default_rng(0)
    names = [f"backbone.model.layers.0.{n}.weight" for n in ("gate_proj", "up_proj", "down_proj")]
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((4, 6), (4, 6), (6, 2))]
    codes = np.rint(weights[1] * 20).astype(np.int8)
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["x", names[0]], ["gate"]),
                helper.make_node("DequantizeLinear", [names[1], "scales"], ["up_w"], axis=1),
                helper.make_node("MatMul", ["x", "up_w"], ["up"]),
                helper.make_node("Mul", ["gate", "up"], ["both"]),
                helper.make_node("MatMul", ["both", names[2]], ["y"]),
            ],
            "layers",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "t", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "t", 2])],
            [
                numpy_helper.from_array(weights[0], names[0]),
                numpy_helper.from_array(codes, names[1]),
                numpy_helper.from_array(np.full(6, 0.05, np.float32), "scales"),
                numpy_helper.from_array(weights[2], names[2]),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 24)],
        ir_version=11,
    )
    sites = observe(model)
    options = ort.SessionOptions()
    options.add_session_config_entry(ACCURACY, EXACT)
    session = ort.InferenceSession(model.SerializeToString(), options)
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in ((1, 3, 4), (2, 1, 4))]
    first, second = (read(sites, session.run([STATISTICS], {"x": x})[0]) for x in inputs)
    total = {name: first[name] + second[name] for name in names}
    flat = np.concatenate([x.reshape(-1, 4) for x in inputs])
    made = (flat @ weights[0]) * (flat @ (codes * np.float32(0.05)))
    for name, rows in ((names[0], flat), (names[1], flat), (names[2], made)):
        assert total[name].count == 5
        np.testing.assert_allclose(total[name].largest, np.abs(rows).max(0), rtol=1e-5)
        np.testing.assert_allclose(total[name].mean, np.abs(rows).mean(0), rtol=1e-5)
        np.testing.assert_allclose(total[name].mean_square, (rows**2).mean(0), rtol=1e-5)


def test_every_layer_is_observed_and_what_was_read_is_counted(
    bundle: Bundle, found: tuple[Calibration, Path]
) -> None:
    calibration, _ = found
    layers = set()
    for piece in bundle.manifest.pieces:
        graph = onnx.load(bundle.path(piece), load_external_data=False).graph
        for site in sites_of(graph):
            for weight in site.weights:
                assert calibration.of(weight, site.width).count > 0
                layers.add(weight.removeprefix("stream."))
    caches = {f"{CACHE}{k}_{n}" for k in ("keys", "values") for n in range(bundle.model.layers)}
    assert set(calibration.layers) == layers | caches
    about = calibration.about
    assert about.source == bundle.manifest.source and about.seed == 5
    assert about.texts == {"Latin": 1, "Han": 1} and sum(about.spoken.values()) == 1
    assert about.recordings == {"en/noise.wav": pytest.approx(0.5, abs=0.2)}
    assert min(about.positions["text"], about.positions["speech"]) > 0
    # a text choice reads the last position of each run only, a layer all positions
    every = calibration.layers["backbone.model.layers.0.mlp.up_proj.weight"].count
    head = calibration.layers["backbone.lm_head.weight"].count
    # the last patch of an answer is never read
    assert sum(about.positions.values()) - 6 <= every <= sum(about.positions.values())
    assert 0 < head < every


def test_the_same_seed_gives_the_same_and_an_interruption_changes_nothing(
    bundle: Bundle,
    work: Work,
    found: tuple[Calibration, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, path, said = observing.Observed.text, tmp_path / "calib.npz", []

    def interrupted(self: observing.Observed, text: str, seed: int) -> observing.Done:
        if text == TEXTS[1] and not said:
            raise KeyboardInterrupt
        return real(self, text, seed)

    monkeypatch.setattr(observing.Observed, "text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(bundle, work, path, longest=FEW, threads=1, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["calib.npz.partial"]

    def heard(stage: str, done: int, total: int) -> None:
        said.append((done, total))

    said.append((0, 0))
    calibrate(bundle, work, path, longest=FEW, threads=1, resume=True, on_progress=heard)
    assert said[1:] == [(2, 3), (3, 3)]  # the first two were not done again
    assert [p.name for p in tmp_path.iterdir()] == ["calib.npz"]
    again, before = Calibration.load(path), found[0]
    assert again.about == before.about
    for name, statistics in before.layers.items():
        np.testing.assert_array_equal(again.layers[name].rows, statistics.rows)


def test_without_resume_an_interruption_leaves_nothing(
    bundle: Bundle, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(observing.Observed, "recording", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(bundle, work, tmp_path / "calib.npz", longest=FEW)
    assert not list(tmp_path.iterdir())


def test_an_int8_bundle_may_run_but_not_one_that_was_calibrated(
    bundle: Bundle, work: Work, found: tuple[Calibration, Path], tmp_path: Path
) -> None:
    quantize_bundle(bundle, recipe.load("int8"), tmp_path / "int8")
    near = calibrate(Bundle.open(tmp_path / "int8"), work, tmp_path / "near.npz", longest=FEW)
    assert near.about.source == bundle.manifest.source
    name = "backbone.model.layers.0.self_attn.q_proj.weight"
    usual = found[0].layers[name].mean_square
    assert np.median(np.abs(near.layers[name].mean_square / usual - 1)) < 0.2
    scaled = tmp_path / "scaled"
    quantize_bundle(bundle, recipe.load("int8-w8a8"), scaled, calibration=found[0])
    with pytest.raises(CalibrationError, match="itself made with a calibration"):
        calibrate(Bundle.open(scaled), work, tmp_path / "again.npz", longest=FEW)


def with_statistics(change: Callable[[np.ndarray], None], path: Path, target: Path) -> Path:
    """A copy of a calibration with the statistics of one layer changed."""
    calibration = Calibration.load(path)
    layers = dict(calibration.layers)
    name = next(iter(layers))
    rows = layers[name].rows
    change(rows)
    layers[name] = Statistics(*rows, layers[name].count)
    Calibration(calibration.about, layers).save(target)
    return target


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "only zeros"), (np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (-1, "negative")],
)
def test_statistics_that_say_nothing_are_refused(
    found: tuple[Calibration, Path], tmp_path: Path, value: float, said: str
) -> None:
    def change(rows: np.ndarray) -> None:
        rows[:] = value

    path = with_statistics(change, found[1], tmp_path / "changed.npz")
    with pytest.raises(CalibrationError, match=f"{said}.*mimo-edge calibrate"):
        Calibration.load(path)


def test_files_that_are_no_calibration_are_refused(
    found: tuple[Calibration, Path], tmp_path: Path
) -> None:
    whole = found[1].read_bytes()
    path = tmp_path / "calib.npz"
    with pytest.raises(CalibrationError, match=r"is not there. Make it: mimo-edge calibrate"):
        Calibration.load(path)
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(CalibrationError, match="is damaged, or no calibration"):
            Calibration.load(path)
    np.savez(path, something=np.zeros(3))
    with pytest.raises(CalibrationError, match="is damaged, or no calibration"):
        Calibration.load(path)
    about = {"format": 99, "counts": {}, "source": "", "recipe": "", "seed": 0}
    np.savez(path, about=np.frombuffer(json.dumps(about).encode(), np.uint8))
    with pytest.raises(CalibrationError, match="another version"):
        Calibration.load(path)


@pytest.mark.parametrize("name", ["int8-w8a8", "fp8"])
def test_a_recipe_that_needs_one_says_how_to_get_it(
    bundle: Bundle, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InputError, match=rf"recipe {name} needs .*mimo-edge calibrate .*int4-edge"):
        quantize_bundle(bundle, recipe.load(name), tmp_path / "new")


def test_one_of_another_checkpoint_or_that_is_not_used_is_refused(
    bundle: Bundle, found: tuple[Calibration, Path], tmp_path: Path
) -> None:
    other = replace(found[0], about=replace(found[0].about, source="0" * 64))
    with pytest.raises(CalibrationError, match=r"another checkpoint \(000000000000\) than"):
        quantize_bundle(bundle, recipe.load("fp8"), tmp_path / "new", calibration=other)
    with pytest.raises(InputError, match="int8 makes no use of a calibration"):
        quantize_bundle(bundle, recipe.load("int8"), tmp_path / "new", calibration=found[0])
    few = Calibration(found[0].about, {})
    with pytest.raises(CalibrationError, match=r"says nothing of .*weight. Calibrate with audio"):
        quantize_bundle(bundle, recipe.load("fp8"), tmp_path / "new", calibration=few)
    assert not list(tmp_path.iterdir())


def test_input_that_cannot_be_read(bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "calib.npz"
    with pytest.raises(InputError, match="is no folder"):
        recordings(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("\n \n")
    with pytest.raises(InputError, match="holds no recordings"):
        recordings(tmp_path)
    with pytest.raises(InputError, match="holds no text"):
        lines(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="cannot be read as text"):
        lines(tmp_path / "none.txt")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match=r"empty\.wav"):
        calibrate(bundle, Work(tmp_path, recordings(tmp_path), (), 0), output, longest=FEW)
    (tmp_path / "empty.wav").write_bytes(b"RIFF and no more")
    with pytest.raises(AudioError, match=r"empty\.wav"):
        calibrate(bundle, Work(tmp_path, recordings(tmp_path), (), 0), output, longest=FEW)
    assert not output.exists()


def test_texts_alone_leave_the_encoder_unread(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"nothing of encoder\.layers.*with audio and text"):
        calibrate(bundle, Work(None, (), TEXTS[:1], 0), tmp_path / "calib.npz", longest=FEW)
    assert not list(tmp_path.iterdir())


def test_command(
    bundle: Bundle, work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, output = tmp_path / "lines.txt", tmp_path / "calib.npz"
    text.write_text("\n".join(TEXTS), encoding="utf-8")
    words = ["calibrate", str(bundle.folder), "--audio", str(work.folder), "--text", str(text)]
    words += ["--max-new", str(FEW), "-o", str(output)]
    assert main(words) == 0
    done = capsys.readouterr()
    assert "texts: 1 Han, 1 Latin" in done.out and "calibrating" in done.err
    assert main(words) == 2 and "--force" in capsys.readouterr().err
    small = tmp_path / "small"
    words = ["quantize", str(bundle.folder), "--recipe", "int8-w8a8", "-o", str(small)]
    assert main(words) == 2 and "mimo-edge calibrate" in capsys.readouterr().err
    assert main([*words, "--calibration", str(output)]) == 0
    manifest = json.loads((small / MANIFEST).read_text())
    assert manifest["calibration"] == Calibration.load(output).digest
    assert manifest["pieces"]["backbone"]["weights"]["backbone"]["activations"] == "int8"
    assert main(["calibrate", str(bundle.folder), "-o", str(tmp_path / "x.npz")]) == 2
    assert main(["calibrate", str(bundle.folder), "--text", str(text), "-o", "x.npy"]) == 2


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello 你", "Latin"),
        ("你好, hi 你好", "Han"),
        ("これは漢字漢字漢字漢字", "Kana"),
        ("привет", "Cyrillic"),
        ("안녕하세요", "Hangul"),
        ("12!", "none"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script


def test_about_is_what_was_written(tmp_path: Path) -> None:
    one = Statistics(np.ones(2), np.ones(2), np.ones(2), 1)
    about = About("source", "fp32", 3, "work", 2, {"a.wav": 1.5}, {"Latin": 1}, {}, {"text": 2})
    Calibration(about, {"a.weight": one}).save(tmp_path / "c.npz")
    assert Calibration.load(tmp_path / "c.npz").about == about
