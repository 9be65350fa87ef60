"""`build --target ort-cpu`: what is lowered computes the same, packed weights are loaded, and what
was built elsewhere is refused."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.ort import build as building
from mimo_edge.engines.ort.build import CHECKING, LOADING, build_bundle, build_costs, lower
from mimo_edge.engines.ort.prepack import ENTRY
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.engines.work import Work
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle import built as placing
from mimo_edge.runtime.bundle.built import place_of
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import EngineError, InputError
from mimo_edge.runtime.bundle.files import hash_file
from mimo_edge.runtime.bundle.manifest import MANIFEST, PIECES, Built
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.generation.loop import generate
from mimo_edge.runtime.generation.request import Request
from mimo_edge.runtime.tasks import MimoAudio, Options
from mimo_edge.scripts.cli import main

from tests.bundles import exported
from tests.golden import Golden

# every form that a product can have, and products that cannot be put together
MIXED = """
name = "mixed"
about = "all forms of products"
[default]
weights = { scheme = "int8" }
[components.backbone]
weights = { scheme = "int4", block = 32, method = "search" }
[components.patch_encoder]
weights = { scheme = "int8", block = 64 }
[components.tokenizer_encoder]
weights = { scheme = "int4", block = 32 }
[components.lm_head]
weights = { scheme = "float" }
[[exceptions]]
tensors = "backbone.model.layers.0.self_attn.v_proj.weight"
weights = { scheme = "int8" }
[[exceptions]]
tensors = "backbone.model.layers.1.mlp.*"
weights = { scheme = "fp8" }
"""


@pytest.fixture(scope="module")
def quantized(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("quantized")
    path = folder / "mixed.toml"
    path.write_text(MIXED, encoding="utf-8")
    source = Bundle.open(exported(golden, golden.lm_names[0]))
    quantize_bundle(source, recipe.load(str(path)), folder / "bundle")
    return Bundle.open(folder / "bundle")


@pytest.fixture(scope="module")
def built(quantized: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(build_bundle(quantized, tmp_path_factory.mktemp("built") / "bundle"))


def operators(bundle: Bundle, piece: str) -> list[str]:
    return [n.op_type for n in onnx.load(bundle.path(piece), load_external_data=False).graph.node]


def feed_of(bundle: Bundle, piece: str, rows: int) -> dict[str, np.ndarray]:
    """Input of one position a row, with caches that hold something."""
    rng = np.random.default_rng(0)
    sizes = {"batch": rows, "time": 1, "capacity": 16, "patches": 3, "mel_frames": 100}
    sizes |= {"frames": 8, "codebooks": 2, "samples": 4800, "tokens": 4}
    whole = {"past_lengths": 3, "new_lengths": 1, "sub_step": 2, "lengths": 8, "top_k": 0}
    feed = {}
    for port in bundle.piece(piece).inputs:
        shape = [sizes[a] if isinstance(a, str) else a for a in port.axes]
        if port.dtype != "int64":
            feed[port.name] = rng.uniform(0.1, 0.9, shape).astype(np.float32)
        elif port.name in whole:
            feed[port.name] = np.full(shape, whole[port.name])
            if port.name == "past_lengths":  # each row its own
                feed[port.name] += np.arange(rows)
        else:
            feed[port.name] = rng.integers(0, 8, shape)
    if "mel" in feed and "lengths" in feed:
        feed["lengths"] = np.full(len(feed["lengths"]), 100)
    return feed


@pytest.mark.parametrize("piece", PIECES)
def test_every_piece_computes_the_same(quantized: Bundle, built: Bundle, piece: str) -> None:
    rows = 1 if piece in ("mel", "tokenizer_decoder") else 2
    feed = feed_of(quantized, piece, rows)
    expected, found = (
        OrtBackend(bundle).session(piece).run(None, feed) for bundle in (quantized, built)
    )
    for port, wanted, given in zip(quantized.piece(piece).outputs, expected, found, strict=True):
        # a cache beyond what a row holds is nobody's
        end = 4 if port.name.startswith("present_") and piece == "backbone" else None
        most = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(
            given[:, :, :end] if end else given,
            wanted[:, :, :end] if end else wanted,
            atol=2e-5 * most,
            err_msg=port.name,
        )


def test_what_is_lowered(quantized: Bundle, built: Bundle) -> None:
    layers = quantized.model.layers
    before, after = (operators(bundle, "backbone") for bundle in (quantized, built))
    assert after.count("GroupQueryAttention") == before.count("Attention") == layers
    assert not {"Attention", "TensorScatter", "RotaryEmbedding"} & set(after)
    # queries and keys are one product, and so are values where they are stored alike; the layers
    # in fp8 stay, and so does the head in floats
    assert after.count("DequantizeLinear") == 3 and after.count("MatMul") == 4
    assert before.count("MatMul") == 7 * layers + 2
    assert after.count("MatMulNBits") == 4 * layers + 1 - 2 + 1
    assert "Attention" in operators(built, "patch_encoder"), "that one sees all of a patch"
    assert "TensorScatter" in operators(built, "mel_stream"), "that cache is a ring"
    assert len(after) < len(before) / 2


def test_rows_of_unequal_length(quantized: Bundle, built: Bundle) -> None:
    """Prompts in chunks and steps together, whatever the rows hold, beyond the first capacity."""
    rng, model = np.random.default_rng(1), quantized.model
    lengths = (5, 300)

    def grid(count: int) -> tuple[np.ndarray, np.ndarray]:
        shape = count, model.n_q, model.group_size
        return rng.integers(0, 30, count), rng.integers(0, min(model.empty_codes), shape)

    prompts = [grid(length) for length in lengths]
    after = [grid(2) for _ in range(3)]
    said = []
    for bundle in (quantized, built):
        states = OrtBackend(bundle).new_rows(2)
        scores = [states.extend(row, *prompt).copy() for row, prompt in enumerate(prompts)]
        for text_ids, codes in after:
            scores += list(states.step(0, text_ids, codes, np.array([True, True])).copy())
        states.truncate(1, 3)
        scores.append(states.extend(1, *prompts[0]).copy())
        said.append(np.stack(scores))
    np.testing.assert_allclose(said[1], said[0], atol=2e-5 * float(np.abs(said[0]).max()))


def test_answers_are_the_same(
    golden: Golden, tmp_path_factory: pytest.TempPathFactory, lm_name: str
) -> None:
    """Of the model in floats, whose golden answers are the reference's."""
    source = Bundle.open(exported(golden, lm_name))
    made = Bundle.open(build_bundle(source, tmp_path_factory.mktemp("floats") / "bundle"))
    assert operators(made, "backbone").count("GroupQueryAttention") == source.model.layers
    arrays = golden.npz(f"{lm_name}.generate.npz")
    prompt = arrays[f"{golden.generate_cases(lm_name)[0]}.ids"]
    hot = Sampling(0.9, top_k=20, top_p=0.95)
    for sampling in (Sampling(0.0), hot):
        request = Request(prompt, sampling, sampling, max_new=8, seed=3)
        answers = [
            list(generate(OrtBackend(bundle), request, golden.empty_id))
            for bundle in (source, made)
        ]
        for one, other in zip(*answers, strict=True):
            assert one.text_id == other.text_id
            np.testing.assert_array_equal(one.codes, other.codes)


def test_a_short_window_stays(golden: Golden) -> None:
    """GroupQueryAttention sees all that a row holds: a model that sees less is left as it is."""
    bundle = Bundle.open(exported(golden, golden.lm_names[0]))
    model = onnx.load(bundle.path("backbone"), load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Sub" and node.output[0] in {
            n.input[1] for n in model.graph.node if n.op_type == "Greater"
        }:
            window = next(t for t in model.graph.initializer if t.name == node.input[1])
            short = onnx.numpy_helper.from_array(np.array(bundle.model.context - 1), window.name)
            window.CopyFrom(short)
            lower(model, bundle, "backbone")
            assert [n.op_type for n in model.graph.node].count("Attention") == bundle.model.layers
            return
    raise AssertionError("the graph has no window")


def test_packed_weights_are_mapped(built: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime finds in the file what it would pack itself: of a changed byte it complains."""
    model = onnx.load(built.path("backbone"), load_external_data=False)
    entries = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer]
    packed = [entry[ENTRY] for entry in entries if ENTRY in entry]
    # there is no packed form of int8 where what it multiplies is not rounded
    nodes = [n for n in model.graph.node if n.op_type == "MatMulNBits"]
    bits = [a.i for node in nodes for a in node.attribute if a.name == "bits"]
    assert len(packed) == bits.count(4) > 0 and bits.count(8) > 0
    assert built.manifest.built is not None
    unread = sum(int(entry["length"]) for entry in entries if ENTRY in entry)
    assert built.manifest.built.unread["backbone"] == unread > 0
    offset = int(packed[0].partition("|")[2].split(";")[0])
    copy = shutil.copytree(built.folder, tmp_path / "copy")
    data = copy / built.piece("backbone").data
    content = bytearray(data.read_bytes())
    content[offset] ^= 1
    data.write_bytes(content)
    with pytest.raises(Exception, match=r"(?i)pre-packed weights"):
        ort.InferenceSession(str(copy / built.piece("backbone").file))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"onnxruntime": "1.0.0"}, "built for ONNX Runtime 1.0.0, here is"),
        ({"processor": "m68k fpu"}, "built for a processor with m68k fpu, here is"),
        ({"target": "ort-cuda"}, "built for backend ort-cuda, here is ort-cpu"),
    ],
)
def test_built_for_another_machine(built: Bundle, changed: dict[str, str], said: str) -> None:
    assert built.manifest.built is not None
    other = dataclasses.replace(built.manifest.built, **changed)
    manifest = dataclasses.replace(built.manifest, built=other)
    with pytest.raises(EngineError, match=f"{said}.*mimo-edge build BUNDLE --target"):
        OrtBackend(Bundle(built.folder, manifest))


def test_what_is_built_is_not_built_again(built: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is built already"):
        build_bundle(built, tmp_path / "again")


def test_an_interrupted_build_goes_on(
    quantized: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = building._build_piece, []

    def counted(bundle: Bundle, piece: str, *rest: object) -> object:
        seen.append(piece)
        if seen.count("patch_decoder") == 1 and piece == "patch_decoder":
            raise KeyboardInterrupt
        return real(bundle, piece, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "_build_piece", counted)
    with pytest.raises(KeyboardInterrupt):
        build_bundle(quantized, tmp_path / "built")
    assert not (tmp_path / "built").exists()
    before = list(seen)
    heard: list[tuple[str, int, int]] = []
    costs = build_costs(quantized, "file")
    work = Work(costs, lambda *said: heard.append(said))
    build_bundle(quantized, tmp_path / "built", work)
    again = seen[len(before) :]
    assert heard[0][:2] == (f"kept {before[0]}", 0), "what is kept is no work"
    assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)
    assert work.total == pytest.approx(sum(costs[p] for p in {*again, CHECKING, LOADING}))
    assert work.done == pytest.approx(sum(costs[piece] for piece in again), rel=1e-2)
    assert again[0] == "patch_decoder" and not set(again[1:]) & set(before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["built"]
    assert (tmp_path / "built" / MANIFEST).is_file()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache"


def test_command(
    quantized: Bundle, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is built into the cache folder is used from then on; what another folder holds, when it
    is named."""
    words = ["build", str(quantized.folder), "--target", "ort-cpu"]
    assert main([*words, "--dry-run"]) == 0 and not cache.exists()
    assert "would write" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    place = Path(json.loads(capsys.readouterr().out)["place"])
    assert place == place_of(quantized, ort.__version__) and cache in place.parents
    with open_backend("ort-cpu", quantized) as backend:
        assert backend.bundle.folder == place and "built for it" in backend.describe()
    with MimoAudio.open(quantized.folder) as model:
        said = model.tts("Hello.", options=Options(max_new=3)).result()
        assert said.wav is not None and np.isfinite(said.wav).all()
    with MimoAudio.open(place) as model:  # it is a bundle
        again = model.tts("Hello.", options=Options(max_new=3)).result()
    np.testing.assert_array_equal(again.wav, said.wav)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(EngineError, match=rf"{other} has no build of .*--engines {other}"):
        open_backend("ort-cpu", quantized, engines=other)
    assert main([*words, "--max-seq", "100"]) == 2
    assert "--max-seq is for TensorRT engines" in capsys.readouterr().err


def test_packed_in_memory(
    quantized: Bundle,
    built: Bundle,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One copy of the weights on the disk, the same numbers; there is one form at a time."""

    def said(*words: str) -> dict[str, object]:
        assert main([*words, "--json"]) == 0
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    def form(folder: Path) -> str:
        made = Bundle.open(folder).manifest.built
        assert made is not None
        return made.packed

    words = ("build", str(quantized.folder), "--target", "ort-cpu")
    most = said(*words, "--packed", "memory", "--dry-run")["most_bytes"]
    assert quantized.data_bytes() < most == building.most_bytes(quantized, "file") // 2
    place = Path(str(said(*words, "--packed", "memory")["place"]))
    small = Bundle.open(place)
    assert form(place) == "memory" and form(built.folder) == "file"
    assert small.manifest.built is not None and not any(small.manifest.built.unread.values())
    graph = onnx.load(small.path("backbone"), load_external_data=False).graph
    assert not any(e.key == ENTRY for t in graph.initializer for e in t.external_data)
    assert small.data_bytes() < min(most, built.data_bytes())
    for piece in ("backbone", "patch_decoder", "mel_stream"):
        feed = feed_of(quantized, piece, 2)
        outputs = [OrtBackend(b).session(piece).run(None, feed) for b in (small, built)]
        for one, other in zip(*outputs, strict=True):
            np.testing.assert_array_equal(one, other)

    packing = ("pack", str(quantized.folder), "--target", "ort-cpu")
    device = tmp_path / "device"
    assert said(*packing, "--packed", "memory", "-o", str(device))["packed_from"] == small.identity
    assert form(device) == "memory" and Bundle.open(device).files == small.files | {
        MANIFEST: hash_file(place / MANIFEST)
    }
    made = (place / MANIFEST).stat().st_mtime_ns
    carried = said(*packing, "-o", str(tmp_path / "another"))["carries"]
    assert form(tmp_path / "another") == "memory", "what is there is carried"
    assert carried == "a build with weights packed in memory"
    said(*words, "--packed", "memory")
    assert (place / MANIFEST).stat().st_mtime_ns == made, "what is there is not built again"
    said(*words)
    assert form(place) == "file" and list(place.parent.iterdir()) == [place]
    with open_backend("ort-cpu", Bundle.open(device)) as backend:
        assert np.isfinite(backend.mel(np.zeros(4800, np.float32))).all()

    other = (str(built.folder), "--target", "ort-cpu", "--packed", "memory", "-o", "x")
    for refused, why in (
        (("pack", *other), "is built already, and not with weights packed in memory"),
        (("build", str(quantized.folder), "--target", "ort-cuda", "--packed", "file"), "for ort-c"),
        (("pack", *packing[1:3], "trt", "--packed", "file", "-o", "x"), "--packed is for ort-cpu"),
    ):
        assert main([*refused]) == 2
        assert why in capsys.readouterr().err


def test_a_damaged_bundle_is_not_built(
    quantized: Bundle, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The build would have hashes of its own, and hide the damage."""
    damaged = tmp_path / "bundle"
    shutil.copytree(quantized.folder, damaged)
    weights = damaged / quantized.piece("backbone").data
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    words = [str(damaged), "--target", "ort-cpu", "--packed", "memory"]
    for command in (["build", *words], ["pack", *words, "-o", str(tmp_path / "device")]):
        assert main(command) == 2
        assert f"{weights.name} was altered" in capsys.readouterr().err
    assert not cache.exists() and [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_a_manifest_says_of_a_build(built: Bundle) -> None:
    """A build of a form that is none is not opened; one that says none is of the only form that
    there was."""
    raw = json.loads(built.manifest.to_json())
    for packed in ("disk", None, 1):
        with pytest.raises(ValueError, match=r"built\.packed"):
            Built.from_raw(raw["built"] | {"packed": packed})
    del raw["built"]["packed"]
    assert Built.from_raw(raw["built"]) == built.manifest.built


def test_a_damaged_build_is_not_used(
    quantized: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = build_bundle(quantized, place_of(quantized, ort.__version__))
    graph = place / quantized.piece("mel").file
    graph.write_bytes(graph.read_bytes()[:-1])
    with open_backend("ort-cpu", quantized) as backend:
        assert backend.bundle.folder == quantized.folder
    assert placing.find_built(quantized, "1.0.0") is None
