"""Keys and values in int8: near what floats give, row for row, and refused where they cannot be."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.calibration import CACHE, About, Calibration, Statistics
from mimo_edge.engines.ort import build as building
from mimo_edge.engines.ort.build import build_bundle
from mimo_edge.engines.ort.graph import DOMAIN
from mimo_edge.engines.ort.int8_cache import HEADROOM, quantize_cache, scales_of, watch_states
from mimo_edge.engines.plan.workload import of_bundle
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.parity.tolerances import snr
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.backends.ort_rows import OrtRowStates
from mimo_edge.runtime.bundle.built import find_built
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import BundleError, CalibrationError, InputError
from mimo_edge.runtime.bundle.manifest import MANIFEST
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from mimo_edge.runtime.generation.loop import generate
from mimo_edge.runtime.generation.request import Request
from mimo_edge.scripts.cli import main
from mimo_edge.scripts.observing import ObservingBackend
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import exported
from tests.golden import Golden

Grid = tuple[np.ndarray, np.ndarray]
NEAR = 25.0  # dB: of the scores with float keys and values; measured 31 to 43
# of rows together against rows alone: equal here, but a sum in another order may round to the next
# code
APART = 50.0  # dB


def grid(bundle: Bundle, count: int, seed: int) -> Grid:
    """Text and speech by turns."""
    model, rng = bundle.model, np.random.default_rng(seed)
    shape = count, model.n_q, model.group_size
    text_ids = rng.integers(0, 30, count)
    text_ids[1::2] = TextTokenizer.of_bundle(bundle).special.empty
    return text_ids, rng.integers(0, min(model.empty_codes), shape)


@pytest.fixture(scope="module")
def source(golden: Golden) -> Bundle:
    return Bundle.open(exported(golden, golden.lm_names[0]))


def observed(bundle: Bundle, path: Path) -> Path:
    """A calibration on a prompt alone, which is all that the backbone needs."""
    with ObservingBackend(bundle, 1) as backend:
        backend.new_rows(1).extend(0, *grid(bundle, 60, 7))
        Calibration(About(bundle.manifest.source, "fp32", 0), backend.take()).save(path)
    return path


@pytest.fixture(scope="module")
def calibration(source: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return observed(source, tmp_path_factory.mktemp("calibration") / "calib.npz")


def write_bias(folder: Path, graph: str, layer: int, place: int, value: float) -> None:
    """Change a number of the bias of a layer's keys in its file."""
    model = onnx.load(folder / graph, load_external_data=False)
    name = f"{layer}.self_attn.k_proj.bias"
    bias = next(t for t in model.graph.initializer if t.name.endswith(name))
    where = {entry.key: entry.value for entry in bias.external_data}
    with (folder / where["location"]).open("r+b") as file:
        file.seek(int(where["offset"]) + 4 * place)
        file.write(np.array([value], np.float32).tobytes())


@pytest.fixture(scope="module")
def built(source: Bundle, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("built") / "bundle"
    return Bundle.open(build_bundle(source, place, calibration=Calibration.load(calibration)))


def test_what_is_observed_goes_into_the_cache(source: Bundle, calibration: Path) -> None:
    """Against the cache itself: of keys the lengths of pairs, at any position."""
    backend = OrtBackend(source)
    states = backend.new_rows(1)
    states.extend(0, *grid(source, 60, 7))
    found, model = Calibration.load(calibration), source.model
    for name, cache in zip(states._names, states._caches, strict=True):
        written = cache.read()[0, :, :60].transpose(1, 0, 2)  # [T, H, D]
        if "keys" in name:
            written = np.hypot(*np.split(written, 2, axis=-1))
        statistics = found.of_cache(name.removeprefix("past_"), written[0].size)
        assert statistics.count == 60
        largest = np.abs(written).max(axis=0).reshape(-1)
        np.testing.assert_allclose(statistics.largest, largest, rtol=1e-5)
    assert sum(name.startswith(CACHE) for name in found.layers) == 2 * model.layers


def test_scales(source: Bundle, calibration: Path) -> None:
    """Both channels of a pair have its length, channels that were silent have some range."""
    found, model = Calibration.load(calibration), source.model
    name = f"{CACHE}values_0"
    rows = found.layers[name].rows
    rows[0, 3] = 0
    layers = {**found.layers, name: Statistics(*rows, found.layers[name].count)}
    scales = scales_of(source, dataclasses.replace(found, layers=layers))
    assert len(scales) == 2 * model.layers
    width, half = model.kv_heads * model.head_dim, model.head_dim // 2
    pairs = found.of_cache("keys_0", width // 2)
    reach = (pairs.mean + HEADROOM * (pairs.largest - pairs.mean)).reshape(-1, half)
    keys = scales["keys_0"]
    assert keys.shape == (model.kv_heads, model.head_dim)
    np.testing.assert_array_equal(keys[:, :half], keys[:, half:])
    np.testing.assert_allclose(127 * keys[:, :half], reach, rtol=1e-6)
    assert 0 < scales["values_0"][0, 3] < scales["values_0"][0].max() / 1000


def test_what_is_built(source: Bundle, built: Bundle, calibration: Path) -> None:
    """Ports, manifest and memory; it is opened again as what it is."""
    manifest = Bundle.open(built.folder).manifest
    assert manifest.cache_dtype == "int8" and manifest.built is not None
    assert manifest.built.calibration == Calibration.load(calibration).digest
    ports = {port.name: port.dtype for port in built.piece("backbone").inputs}
    assert ports["past_keys_0"] == ports["past_values_1"] == "int8"
    assert ports["embeddings"] == "float32"
    assert {p.dtype for p in built.piece("patch_decoder").inputs if "past" in p.name} == {"float32"}
    assert of_bundle(built).sizes.cache_bytes == 1
    sizes = []
    for bundle in (source, built):
        states = OrtBackend(bundle).new_rows(1)
        sizes.append(sum(cache.read().nbytes for cache in states._caches))
    assert sizes[0] == 4 * sizes[1] > 0


def test_near_what_floats_give(source: Bundle, built: Bundle) -> None:
    """Prompts in chunks and steps, rows of unequal length, beyond the first capacity."""
    said = []
    for bundle in (source, built):
        states = OrtBackend(bundle).new_rows(2)
        prompts = [grid(bundle, length, length) for length in (5, 300)]
        scores = [states.extend(row, *prompt).copy() for row, prompt in enumerate(prompts)]
        for number in range(3):
            active = np.array([True, True])
            scores += list(states.step(0, *grid(bundle, 2, number), active).copy())
        said.append(np.stack(scores))
    for found, expected in zip(said[1], said[0], strict=True):
        assert NEAR < snr(found, expected) < 100


def test_keys_with_large_biases(source: Bundle, tmp_path: Path) -> None:
    """As this family has them: a few channels, of slow pairs, far above all others, and at
    positions that calibration did not come to."""
    folder, model = tmp_path / "biased", source.model
    shutil.copytree(source.folder, folder)
    half = model.head_dim // 2
    for layer in range(model.layers):
        for head in range(model.kv_heads):
            place = head * model.head_dim + half - 3
            write_bias(folder, source.piece("backbone").file, layer, place, 60.0)
    biased = Bundle.open(folder, verify=False)
    found = Calibration.load(observed(biased, tmp_path / "calib.npz"))
    place = build_bundle(biased, tmp_path / "built", calibration=found)
    said = []
    for bundle in (biased, Bundle.open(place, verify=False)):
        states = OrtBackend(bundle).new_rows(1)
        said.append(states.extend(0, *grid(bundle, 500, 3)).copy())
    assert snr(said[1], said[0]) > NEAR


def test_rows_are_as_they_are_alone(built: Bundle) -> None:
    """Prompts in parts; rows that join, are truncated, copied, inactive, and gone on with."""
    backend = OrtBackend(built)
    first, second, more = grid(built, 40, 1), grid(built, 9, 2), grid(built, 3, 3)

    def part(whole: Grid, start: int, stop: int) -> Grid:
        return whole[0][start:stop], whole[1][start:stop]

    def alone(*parts: Grid) -> list[np.ndarray]:
        states = backend.new_rows(1)
        scores = [states.extend(0, *parts[0]).copy()]
        for one in parts[1:]:
            for place in range(len(one[0])):
                given = part(one, place, place + 1)
                scores.append(states.step(0, *given, np.array([True]))[0].copy())
        states.close()
        return scores

    def near(found: np.ndarray, expected: np.ndarray) -> None:
        assert snr(found, expected) > APART

    states = OrtRowStates(backend, 3, capacity=16)
    for at in range(0, 40, 13):
        scores = states.extend(0, *part(first, at, min(40, at + 13)))
    whole = alone(first, more)
    near(scores, whole[0])
    states.extend(1, *grid(built, 30, 4))
    states.truncate(1, 0)
    near(states.extend(1, *second), alone(second)[0])
    states.copy(0, 2, 25)  # of a known beginning; the rest is read anew
    near(states.extend(2, *part(first, 25, 40)), whole[0])
    behind = alone(second, part(more, 0, 2))
    for place, active in enumerate(([True, True, True], [True, False, True], [True, True, True])):
        text_ids, codes = (np.repeat(a, 3, axis=0) for a in part(more, place, place + 1))
        if place == 2:  # the second row stood still, and reads what the others read before
            text_ids[1], codes[1] = more[0][1], more[1][1]
        scores = states.step(0, text_ids, codes, np.array(active))
        for row in (0, 2):
            near(scores[row], whole[1 + place])
        if place != 1:
            near(scores[1], behind[1 if place == 0 else 2])
    assert list(states.lengths) == [43, 11, 43]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("packed", [False, True])
def test_what_codes_cannot_hold_comes_through(bad: float, packed: bool) -> None:
    """A key of one row that is NaN or infinite, whose queries are sound."""
    heads, width = 2, 16
    states, scales = ["qkv", "", ""] if packed else ["q", "k", "v"], ["scale", "scale"]
    names = [name for name in states if name]
    sizes = {"qkv": 3 * heads * width, **dict.fromkeys("qkv", heads * width)}
    float_ports = [(name, TensorProto.FLOAT, [2, 1, sizes[name]]) for name in names]
    caches = [(f"past_{n}", TensorProto.INT8, [2, heads, 8, width]) for n in ("keys", "values")]
    node = helper.make_node(
        "GroupQueryAttention",
        [*states, "past_keys", "past_values", "last", "longest", "cos", "sin", *[""] * 3, *scales],
        ["attended", "present_keys", "present_values"],
        domain=DOMAIN,
        num_heads=heads,
        kv_num_heads=heads,
        do_rotary=1,
        k_quant_type="PER_CHANNEL",
        v_quant_type="PER_CHANNEL",
        kv_cache_bit_width=8,
    )
    constants = {
        "cos": np.ones((8, width // 2), np.float32),
        "sin": np.zeros((8, width // 2), np.float32),
        "scale": np.full((heads, width), 0.05, np.float32),
        "last": np.array([3, 1], np.int32),
        "longest": np.array(4, np.int32),
    }
    model = helper.make_model(
        helper.make_graph(
            [node, helper.make_node("Identity", ["attended"], ["y"])],
            "one layer",
            [helper.make_tensor_value_info(*port) for port in (*float_ports, *caches)],
            [
                helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 1, heads * width]),
                *(
                    helper.make_tensor_value_info(name.replace("past", "present"), *rest)
                    for name, *rest in caches
                ),
            ],
            [numpy_helper.from_array(values, name) for name, values in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)],
        ir_version=11,
    )
    rng = np.random.default_rng(0)
    feed = {n: rng.normal(size=[2, 1, sizes[n]]).astype(np.float32) for n in names}
    feed |= {name: np.ones(shape, np.int8) for name, _, shape in caches}
    ruined = {name: values.copy() for name, values in feed.items()}
    ruined["qkv" if packed else "k"][1, 0, heads * width if packed else 0] = bad

    def attended(given: dict[str, np.ndarray]) -> np.ndarray:
        session = ort.InferenceSession(model.SerializeToString())
        return session.run(["y"], given)[0]

    plain = attended(feed)
    assert np.isfinite(attended(ruined)).all(), "codes hide it: were it not so, nothing is needed"
    watch_states(model)
    np.testing.assert_array_equal(attended(feed), plain)
    found = attended(ruined)
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


def test_a_key_that_is_nan_ends_the_answer(
    source: Bundle, calibration: Path, golden: Golden, tmp_path: Path
) -> None:
    folder = build_bundle(source, tmp_path / "b", calibration=Calibration.load(calibration))
    write_bias(folder, source.piece("backbone").file, 0, 0, np.nan)
    backend = OrtBackend(Bundle.open(folder, verify=False))
    prompt = golden.npz(f"{golden.lm_names[0]}.generate.npz")
    name = golden.generate_cases(golden.lm_names[0])[0]
    request = Request(prompt[f"{name}.ids"], Sampling(0.0), Sampling(0.0), max_new=3, seed=0)
    with pytest.raises(BundleError, match="NaN or infinit"):
        list(generate(backend, request, golden.empty_id))


def test_what_cannot_be(source: Bundle, calibration: Path, tmp_path: Path) -> None:
    found = Calibration.load(calibration)
    other = dataclasses.replace(found, about=dataclasses.replace(found.about, source="0" * 64))
    with pytest.raises(CalibrationError, match=r"another checkpoint \(000000000000\) than"):
        build_bundle(source, tmp_path / "b", calibration=other)
    layers = {n: s for n, s in found.layers.items() if not n.startswith(CACHE)}
    early = dataclasses.replace(found, layers=layers)
    with pytest.raises(CalibrationError, match=r"earlier version .*mimo-edge calibrate"):
        build_bundle(source, tmp_path / "b", calibration=early)
    one = {n: s for n, s in found.layers.items() if n != f"{CACHE}values_1"}
    with pytest.raises(CalibrationError, match=r"says nothing of cache\.values_1"):
        build_bundle(source, tmp_path / "b", calibration=dataclasses.replace(found, layers=one))
    for changed, said in (
        ({"cache_dtype": "float16"}, "keeps keys and values in float16"),
        ({"calibration": "0" * 64}, r"its values are scaled.*int4-edge"),
    ):
        manifest = dataclasses.replace(source.manifest, **changed)
        with pytest.raises(InputError, match=said):
            build_bundle(Bundle(source.folder, manifest), tmp_path / "b", calibration=found)
    model = onnx.load(source.path("backbone"), load_external_data=False)
    with pytest.raises(InputError, match=r"0 of the \d layers .* multiples of 16"):
        quantize_cache(model, scales_of(source, found))  # its attention was not lowered
    assert not list(tmp_path.iterdir())


def test_an_interrupted_build_is_not_gone_on_with_in_another_form(
    source: Bundle, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the backbone, whose keys and values are others, what was finished is taken over."""
    real, made, place = building._build_piece, [], tmp_path / "built"

    def counted(bundle: Bundle, piece: str, *rest: object) -> object:
        made.append(piece)
        return real(bundle, piece, *rest)  # type: ignore[arg-type]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "_build_piece", counted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(building, "finish", interrupted)
        build_bundle(source, place, calibration=Calibration.load(calibration))
    assert len(made) == len(source.manifest.pieces)
    found = Bundle.open(build_bundle(source, place))
    assert found.manifest.cache_dtype == "float32"
    assert made[len(source.manifest.pieces) :] == ["backbone"]


def test_a_file_of_an_earlier_version_is_read(
    calibration: Path, tmp_path: Path, source: Bundle
) -> None:
    """Where keys and values are not asked for it is as good as ever."""
    with np.load(calibration) as file:
        content = {name: file[name] for name in file if not name.startswith(CACHE)}
    about = json.loads(content["about"].tobytes()) | {"format": 1}
    about["counts"] = {n: c for n, c in about["counts"].items() if not n.startswith(CACHE)}
    content["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(tmp_path / "old.npz", **content)
    old = Calibration.load(tmp_path / "old.npz")
    name = "backbone.model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(
        old.layers[name].rows, Calibration.load(calibration).layers[name].rows
    )


def test_command(
    source: Bundle,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was built last is what runs; other targets refuse it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["build", str(source.folder), "--target"]
    int8 = ["--kv-cache", "int8"]
    assert main([*words, "ort-cpu", *int8]) == 2
    assert "mimo-edge calibrate" in capsys.readouterr().err
    assert main([*words, "ort-cpu", "--calibration", str(calibration)]) == 2
    assert "give both" in capsys.readouterr().err
    for target in ("trt-rtx:8.9", "ort-cuda"):
        assert main([*words, target, *int8]) == 2
        assert "only ort-cpu has an attention that takes them" in capsys.readouterr().err
    for given, dtype in (([], "float32"), ([*int8, "--calibration", str(calibration)], "int8")):
        assert main([*words, "ort-cpu", *given]) == 0
        assert ("keys and values in int8" in capsys.readouterr().out) == (dtype == "int8")
        found = find_built(source, ort.__version__)
        assert found is not None and found.manifest.cache_dtype == dtype
    written = (found.folder / MANIFEST).stat().st_mtime_ns
    assert main([*words, "ort-cpu", *given]) == 0
    assert (found.folder / MANIFEST).stat().st_mtime_ns == written, "it was there"


def test_of_quantised_weights(source: Bundle, calibration: Path, tmp_path: Path) -> None:
    """The same calibration is for every precision of the checkpoint."""
    quantize_bundle(source, recipe.load("int8"), tmp_path / "int8")
    small = Bundle.open(tmp_path / "int8")
    found = Calibration.load(calibration)
    made = Bundle.open(build_bundle(small, tmp_path / "built", calibration=found))
    said = []
    for bundle in (small, made):
        said.append(OrtBackend(bundle).new_rows(1).extend(0, *grid(source, 40, 3)).copy())
    assert snr(said[1], said[0]) > NEAR
