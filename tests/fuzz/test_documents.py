"""Documents that are not what they should be: mutations of manifests, histories, conversation and
tokenizer files.

Some hundred in a normal run; `-m slow` makes thousands.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.manifest import MANIFEST
from mimo_edge.runtime.chat.conversation import read_conversation, read_history, write_history
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer

from tests.bundles import hollow
from tests.fuzz.mutations import COUNTS, mutated_bytes, mutated_json, try_all
from tests.golden import Golden


@pytest.mark.parametrize("count", COUNTS)
def test_manifests(tmp_path: Path, count: int) -> None:
    folder = hollow(tmp_path / "bundle").folder

    def read() -> object:
        return Bundle.open(folder, verify=False)

    refused = try_all(folder / MANIFEST, count, mutated_json, read, 1)
    assert refused > count // 2, "what was changed does not matter: the mutations test nothing"


@pytest.mark.parametrize("count", COUNTS)
def test_graphs(golden: Golden, tmp_path: Path, count: int) -> None:
    """Graphs in a bundle whose ports are checked."""
    from tests.bundles import exported

    source = exported(golden, golden.lm_names[0])
    folder = tmp_path / "bundle"
    folder.mkdir()
    raw = json.loads((source / MANIFEST).read_text())
    for name in raw["files"]:
        (folder / name).symlink_to(source / name)
    graph = folder / "backbone.onnx"
    graph.unlink()
    graph.write_bytes((source / graph.name).read_bytes())
    data = folder / "backbone.onnx.data"
    data.unlink()
    data.write_bytes((source / data.name).read_bytes())

    def read() -> object:
        raw["files"][graph.name]["bytes"] = graph.stat().st_size
        (folder / MANIFEST).write_text(json.dumps(raw))
        return Bundle.open(folder, verify=False)

    read()
    try_all(graph, count // 4, mutated_bytes, read, 2)


@pytest.mark.parametrize("count", COUNTS)
def test_conversations(tmp_path: Path, count: int) -> None:
    path = tmp_path / "talk.json"
    turns = [
        {"role": "user", "audio": "a.wav"},
        {"role": "assistant", "text": "Yes.", "audio": "b.wav"},
        {"role": "user", "text": "And?"},
    ]
    content = {"system_prompt": "Be kind.", "voice": "v.wav", "messages": turns}
    path.write_text(json.dumps(content))
    refused = try_all(path, count, mutated_json, lambda: read_conversation(path), 3)
    assert refused > count // 4


@pytest.mark.parametrize("count", COUNTS)
def test_histories(tmp_path: Path, count: int) -> None:
    path = tmp_path / "talk.npz"
    write_history(path, np.random.default_rng(0).integers(0, 100, (9, 40)))
    refused = try_all(path, count, mutated_bytes, lambda: read_history(path), 4)
    assert refused > count // 2


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.json", "tokenizer_config.json", "added_tokens.json"),
        *("special_tokens_map.json", "vocab.json", "merges.txt"),
    ],
)
def test_tokenizers(golden: Golden, tmp_path: Path, name: str, count: int) -> None:
    for path in (golden.folder / "text_tokenizer").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if name in ("vocab.json", "merges.txt"):  # the other form of tokenizer.json
        model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
        (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])) + "\n")

    def read() -> object:
        return TextTokenizer.from_folder(tmp_path).encode("Hello <|im_end|> 你好", special=False)

    mutate = mutated_bytes if name == "merges.txt" else mutated_json
    try_all(tmp_path / name, count // 4, mutate, read, 5)
