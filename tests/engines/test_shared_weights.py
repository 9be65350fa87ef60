"""Pieces that have the same weights have them in one file; older bundles have them twice."""

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.ort.build import build_bundle
from mimo_edge.engines.quantize import bundle_parts, quantize_bundle
from mimo_edge.engines.weigh import weigh
from mimo_edge.engines.weight_file import (
    Place,
    Stored,
    WeightFile,
    is_external,
    map_tensor,
    point_to,
)
from mimo_edge.export.tracers import together
from mimo_edge.runtime.bundle import unfinished
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.data_files import SHARED, by_data_file, data_file
from mimo_edge.runtime.bundle.engine import piece_hashes
from mimo_edge.runtime.bundle.errors import BundleError
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.manifest import MANIFEST, PIECES, FileSpec
from mimo_edge.scripts.cli import main

from tests.bundles import exported, hollow
from tests.engines.feeds import feed_of
from tests.golden import Golden


@pytest.fixture(scope="module")
def shared(golden: Golden) -> Bundle:
    return Bundle.open(exported(golden, golden.lm_names[0]))


@pytest.fixture(scope="module")
def apart(shared: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same bundle as it was written before: a data file for every piece."""
    folder = tmp_path_factory.mktemp("apart")
    files = {name: spec for name, spec in shared.manifest.files.items() if ".onnx" not in name}
    pieces = {}
    for name in files:
        (folder / name).hardlink_to(shared.folder / name)
    for piece, spec in shared.manifest.pieces.items():
        model, data = graph(shared, piece), shared.folder / spec.data
        tensors = [t for t in model.graph.initializer if is_external(t)]
        with WeightFile(folder / f"{piece}.onnx.data") as own:
            places = own.write(Stored(t.name, [map_tensor(t, data)]) for t in tensors)
        point_to(model, own.path.name, places)
        (folder / spec.file).write_bytes(model.SerializeToString(deterministic=True))
        pieces[piece] = dataclasses.replace(spec, data=own.path.name)
        files |= {own.path.name: own.spec, spec.file: hash_file(folder / spec.file)}
    manifest = dataclasses.replace(shared.manifest, pieces=pieces, files=files)
    write_text(folder / MANIFEST, manifest.to_json())
    return Bundle.open(folder)


def graph(bundle: Bundle, piece: str) -> onnx.ModelProto:
    return onnx.load(bundle.path(piece), load_external_data=False)


def own_bytes(bundle: Bundle, piece: str) -> int:
    return sum(
        map_tensor(tensor, bundle.folder / bundle.piece(piece).data).nbytes
        for tensor in graph(bundle, piece).graph.initializer
        if is_external(tensor)
    )


def outputs(bundle: Bundle, piece: str) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(bundle.path(piece)), options)
    return session.run(None, feed_of(session))


def test_the_same_weights_lie_there_once(shared: Bundle, apart: Bundle) -> None:
    assert {shared.piece(name).data for name in SHARED} == {"tokenizer_decoder.onnx.data"}
    files = {spec.data for spec in shared.manifest.pieces.values()}
    assert len(files) == len(PIECES) - 2
    halves = sum(apart.weights(piece).bytes for piece in SHARED[1:])
    assert halves > 1e6
    assert apart.data_bytes() - shared.data_bytes() == halves, "they have nothing of their own"
    assert shared.data_bytes(*SHARED) == shared.weights(SHARED[0]).bytes
    for piece in PIECES:
        assert shared.weight_bytes(piece) == apart.weight_bytes(piece) == own_bytes(shared, piece)


@pytest.mark.parametrize("piece", SHARED)
def test_graphs_compute_the_same_from_one_file(shared: Bundle, apart: Bundle, piece: str) -> None:
    for found, wanted in zip(outputs(shared, piece), outputs(apart, piece), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_quantize_and_build_share_too(shared: Bundle, apart: Bundle, tmp_path: Path) -> None:
    """Codes, scales and packed weights, and from an older bundle byte for byte the same."""
    chosen = recipe.load("int8")
    for name, source in (("new", shared), ("old", apart)):
        quantize_bundle(source, chosen, tmp_path / name)
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {path.name for path in (tmp_path / "old").iterdir()}
    assert not names & {f"{piece}.onnx.data" for piece in SHARED[1:]}
    for name in names - {MANIFEST}:
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "old" / name).read_bytes()
    quantized = Bundle.open(tmp_path / "new")
    built = Bundle.open(build_bundle(quantized, tmp_path / "built"))
    for bundle in (quantized, built):
        held = bundle.weights(SHARED[0]).bytes
        assert held < 1.2 * bundle.weight_bytes(SHARED[0]), "aligned, and no more"
        assert bundle.weight_bytes("mel_stream") + bundle.weight_bytes("vocoder_stream") > held / 2
    shares = [weigh(chosen, bundle_parts(source), "fp32") for source in (shared, apart)]
    assert shares[0] == shares[1]


def test_damage_is_found(
    shared: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in shared.folder.iterdir():
        (folder / path.name).hardlink_to(path)
    data = folder / data_file("mel_stream")
    content = data.read_bytes()
    data.unlink()
    with pytest.raises(BundleError, match=r"tokenizer_decoder\.onnx\.data is missing"):
        Bundle.open(folder)
    data.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"tokenizer_decoder\.onnx\.data has \d+ bytes"):
        Bundle.open(folder, verify=False)
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"tokenizer_decoder\.onnx\.data was altered"):
        Bundle.open(folder)
    assert main(["inspect", str(shared.folder)]) == 0
    said = "tokenizer_decoder, mel_stream, vocoder_stream: weights in one file, tokenizer_decoder"
    assert said in capsys.readouterr().out


def test_an_engine_is_of_the_weights_that_its_graph_reads(shared: Bundle) -> None:
    data = shared.manifest.files["tokenizer_decoder.onnx.data"].sha256
    assert [piece_hashes(shared, piece)[1] for piece in SHARED] == [data] * len(SHARED)
    assert len({piece_hashes(shared, piece)[0] for piece in SHARED}) == len(SHARED)


def write(
    path: Path, *graphs: dict[str, list[np.ndarray]]
) -> tuple[FileSpec, list[dict[str, Place]]]:
    with WeightFile(path) as file:
        places = [file.write(Stored(n, iter(p)) for n, p in graph.items()) for graph in graphs]
    return file.spec, places


def test_a_weight_file(tmp_path: Path) -> None:
    """Equal in name and content: once. Equal in one of them: twice."""
    rng = np.random.default_rng(0)
    big, other = (rng.integers(0, 256, 20_000, np.uint8) for _ in range(2))
    short = big[:7]
    spec, (whole, half) = write(
        tmp_path / "data",
        {"a": [big[:5000], big[5000:]], "b": [short], "same as b": [short]},
        {"stream.a": [big], "b": [other], "stream.c": [big], "same as b": [short]},
    )
    assert half["stream.a"] == whole["a"] == (0, 20_000)
    assert whole["b"] != whole["same as b"] == half["same as b"]
    assert len({*whole.values(), *half.values()}) == 5
    content = (tmp_path / "data").read_bytes()
    assert spec == hash_file(tmp_path / "data") and spec.bytes == len(content)
    for array, (start, length) in ((other, half["b"]), (big, half["stream.c"])):
        assert start % 4096 == 0 and content[start : start + length] == array.tobytes()
    # what is left out is left out at the end of the file, too, and the next goes there
    ended, _ = write(tmp_path / "ended", {"a": [big]}, {"a": [big]})
    assert ended == write(tmp_path / "alone", {"a": [big]})[0]
    assert (tmp_path / "ended").read_bytes() == (tmp_path / "alone").read_bytes()


def test_the_order_of_tracing_changes_nothing() -> None:
    groups = by_data_file(PIECES)
    assert groups[-1] == list(SHARED) and groups[:-1] == [[p] for p in PIECES[:5]]

    def traced(names: list[str]) -> Iterator[tuple[str, str]]:
        yield from ((name, name.upper()) for name in names)

    for seed in range(5):
        order = random.Random(seed).sample(PIECES, len(PIECES))
        found = list(together(traced(order), groups))  # type: ignore[arg-type]
        assert sorted(map(list, found)) == sorted(groups)
        assert all(piece == name.upper() for group in found for name, piece in group.items())


def test_a_marker_claims_no_file_that_is_not_there(tmp_path: Path) -> None:
    """All pieces of a file are kept, or none; as a kill between two markers leaves them."""
    bundle = hollow(tmp_path / "bundle")
    with WeightFile(bundle.folder / data_file("mel_stream")) as data:
        data.write([Stored("w", [np.arange(3000)])])
    made = {}
    for name in SHARED:
        spec = dataclasses.replace(bundle.piece(name), data=data.path.name)
        made[name] = spec, hash_file(bundle.folder / spec.file)

    def kept() -> bool:
        return unfinished.read_markers(bundle.folder, SHARED, "key") is not None

    first = dict(list(made.items())[:2])
    unfinished.write_markers(bundle.folder, "key", first, data.spec)
    assert not kept()
    finished = unfinished.write_markers(bundle.folder, "key", made, data.spec)
    assert unfinished.read_markers(bundle.folder, SHARED, "key") == finished
    assert unfinished.read_markers(bundle.folder, SHARED, "another") is None
    content = data.path.read_bytes()
    for damage in (content[:-1], content[:-1] + b"x", b""):
        data.path.write_bytes(damage)
        assert not kept()
    data.path.unlink()
    assert not kept()
    data.path.write_bytes(content)
    assert kept()
    (bundle.folder / "mel_stream.onnx").unlink()
    assert not kept()
    assert json.loads((bundle.folder / "mel_stream.finished.json").read_text())["key"] == "key"
