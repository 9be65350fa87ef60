"""A bundle from somebody else: names, sizes, ports and files that are not as its manifest says."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import BundleError, unreadable
from mimo_edge.runtime.bundle.graph_file import read_graph
from mimo_edge.runtime.bundle.manifest import MANIFEST
from mimo_edge.runtime.bundle.names import plain_name
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer

from tests.bundles import exported
from tests.golden import Golden


@pytest.fixture
def bundle(golden: Golden, tmp_path: Path) -> Path:
    """Files of a bundle under its own names; the large ones are shared."""
    source, folder = exported(golden, golden.lm_names[0]), tmp_path / "bundle"
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file():
            os.link(path, folder / path.name)
    copy(folder / MANIFEST)
    return folder


def copy(path: Path) -> Path:
    """Part a file from what it is linked to."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    change(raw)
    (folder / MANIFEST).write_text(json.dumps(raw))


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as error:
        Bundle.open(folder, verify=False)
    return str(error.value)


NAMES = ("../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "C:x", "nul", "LPT1.txt", "a\0", "x.")


@pytest.mark.parametrize("name", NAMES)
def test_names(bundle: Path, name: str) -> None:
    def rename(raw: dict) -> None:
        raw["files"][name] = raw["files"].pop("mel.onnx.data")

    assert not plain_name(name)
    edit(bundle, rename)
    assert "is not the name of a file in the bundle" in refusal(bundle)


def test_usual_names() -> None:
    for name in (
        "mel.onnx",
        "mel.onnx.data",
        "tokenizer.json",
        "a b",
        "模型.onnx",
        "connect",
        "-x",
    ):
        assert plain_name(name)


SIZES: dict[str, tuple[Callable[[dict], object], str]] = {
    "layers": (lambda m: m.update(layers=7), "the model 7 layers"),
    "no hop": (lambda m: m.update(hop_length=0), "model.hop_length is 0"),
    "hop above the window": (lambda m: m.update(hop_length=2000), "above n_fft"),
    "huge head": (lambda m: m.update(head_dim=1 << 40), "model.head_dim is 1099511627776"),
    "other head": (lambda m: m.update(head_dim=64), "'capacity', 32] in place of past_keys_0"),
    "vocabulary": (lambda m: m.update(vocab_size=513), "the model says float32 of 513"),
    "width": (lambda m: m.update(hidden_size=95), "the model says float32 of 95"),
    "codebooks": (lambda m: m.update(n_q=9), "codebooks, n_q says 9"),
    "empty code": (lambda m: m["empty_codes"].__setitem__(0, 257), "empty code 257 of codebook 0"),
    "negative": (lambda m: m["delays"].__setitem__(1, -1), "model.delays"),
    "patches": (lambda m: m.update(group_size=5), "the model says int64 of 5"),
    "mel": (lambda m: m.update(n_mels=80), "the model says float32 of 80"),
    "rate": (lambda m: m.update(sampling_rate=1), "model.sampling_rate is 1"),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_contradict_the_ports(bundle: Path, case: str) -> None:
    change, says = SIZES[case]
    edit(bundle, lambda raw: change(raw["model"]))
    assert says in refusal(bundle)


def test_ports_that_are_not_the_graphs(bundle: Path) -> None:
    edit(bundle, lambda raw: raw["pieces"]["mel"].update(inputs=[]))
    assert "/mel.onnx has other inputs than the bundle's manifest says (1, not 0)" in refusal(
        bundle
    )


def test_tools_and_hashes(bundle: Path) -> None:
    for change in (
        lambda raw: raw.update(tools=[]),
        lambda raw: raw["files"]["mel.onnx"].update(sha256="../x"),
        lambda raw: raw["files"]["mel.onnx"].update(bytes=-1),
        lambda raw: raw["files"]["mel.onnx"].update(bytes=1.0),
    ):
        before = (bundle / MANIFEST).read_text()
        edit(bundle, change)
        assert "is damaged" in refusal(bundle)
        (bundle / MANIFEST).write_text(before)
    Bundle.open(bundle, verify=False)


@pytest.mark.parametrize("place", ["../../secret.bin", "/etc/passwd", "other.onnx.data"])
def test_weights_in_a_file_that_is_not_named(bundle: Path, place: str) -> None:
    path = copy(bundle / "mel.onnx")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    path.write_bytes(model.SerializeToString())
    (bundle / "other.onnx.data").write_bytes(b"")
    edit(bundle, lambda raw: raw["files"]["mel.onnx"].update(bytes=path.stat().st_size))
    assert f"has weights in {place!r}, which is not in the bundle's manifest" in refusal(bundle)


def test_a_tensor_inside_a_node_counts(tmp_path: Path) -> None:
    """A constant's value, and an initializer of a branch."""
    helper, path = onnx.helper, tmp_path / "g.onnx"

    def tensor(place: str) -> object:
        made = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=1)
        made.external_data.add(key="location", value=place)
        return made

    branch = helper.make_graph([], "branch", [], [], [tensor("in a branch")])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor("in a node")),
        helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(nodes, "g", [], [], [tensor("beside")])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert read_graph(path).locations == {"in a branch", "in a node", "beside"}
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="no whole ONNX file"):
        read_graph(path)


def test_linked_weights(bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime refuses them beside a graph that is no link, and takes a bundle that is one."""
    linked, away = tmp_path / "linked", tmp_path / "away.data"
    linked.symlink_to(bundle)
    Bundle.open(linked, verify=False)
    os.rename(bundle / "mel.onnx.data", away)
    (bundle / "mel.onnx.data").symlink_to(away)
    assert re.search("mel.onnx.data is a link to .*away.data.*Copy the file", refusal(bundle))


def test_a_bundle_that_changes(bundle: Path) -> None:
    opened = Bundle.open(bundle, verify=False)
    assert opened.path("mel") == bundle / "mel.onnx"
    copy(bundle / "backbone.onnx.data")  # the same content in another file
    with pytest.raises(BundleError, match=r"backbone.onnx.data has changed since .* Open it again"):
        opened.path("mel")


def test_a_tokenizer_file_that_is_not_named(bundle: Path) -> None:
    """It must not change what a verified bundle says."""
    edit(bundle, lambda raw: raw["files"].pop("tokenizer_config.json"))
    copy(bundle / "tokenizer_config.json").write_text('{"eos_token": "<|im_start|>"}')
    opened = Bundle.open(bundle)
    named = TextTokenizer.from_folder(bundle, opened.manifest.files)
    assert named.special.eos != named.special.im_start
    assert TextTokenizer.from_folder(bundle).special.eos == named.special.im_start


def test_a_manifest_in_another_encoding(bundle: Path) -> None:
    text = (bundle / MANIFEST).read_text()
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be"):
        (bundle / MANIFEST).write_bytes(text.encode(encoding))
        Bundle.open(bundle, verify=False)


def test_what_may_not_be_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not damaged, and nothing has to be downloaded again."""

    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mimo_edge.runtime.bundle.bundle.read_text", forbidden)
    assert refusal(bundle) == f"{bundle / MANIFEST} may not be read; change its permissions."
    assert "Copy it" in unreadable("x", OSError(5, "Input/output error"), "Copy it again.")
