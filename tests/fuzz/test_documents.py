"""Documents that are not what they should be: mutations of manifests, histories, conversation and
tokenizer files. Whatever comes, it is taken or refused with a sentence, and costs little memory.

Some hundred in a normal run; `-m slow` makes thousands.
"""

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import MimoError
from mimo_edge.runtime.bundle.manifest import MANIFEST
from mimo_edge.runtime.chat.conversation import read_conversation, read_history, write_history
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer

from tests.bundles import hollow
from tests.golden import Golden

FEW, MANY = 120, 4000  # mutations of each document
MEMORY = 64 << 20  # bytes beyond what a document that is refused may take
# what JSON can hold where something else is expected
ODD = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, float("nan")),
    *("", "x", "..", "../../etc/passwd", "/etc/passwd", "\ud800", "\0", "a" * 300),
    *([], [[]], {}, {"a": []}, ["x"] * 5),
)


def mutated_value(value: object, rng: random.Random) -> object:
    """The same JSON with one thing in it changed, removed, doubled, or put elsewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(6):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(("x", "schema", "", key + " "))] = changed.pop(key)
            case _:
                changed[key] = mutated_value(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        match rng.randrange(5):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, value[at]]
            case _:
                return [*value[:at], mutated_value(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, a part cut out, doubled or put in another place, or another encoding."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 | 1:
                if at < len(data):
                    data[at] = rng.randrange(256)
            case 2:
                del data[at : at + rng.randint(1, 200)]
            case 3:
                data[at:at] = data[at : at + rng.randint(1, 200)]
            case 4:
                data[at:at] = rng.choice(
                    (b"[" * 3000, b"9" * 5000, b"\xff\xfe", b"\0", b"\xef\xbb")
                )
            case 5:
                del data[at:]
    return bytes(data)


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return mutated_bytes(content, rng)
    value = mutated_value(json.loads(content), rng)
    text = json.dumps(value)
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le"))
    return text.encode(encoding, "surrogatepass")


def try_all(
    path: Path,
    count: int,
    mutate: Callable[[bytes, random.Random], bytes],
    read: Callable[[], object],
    seed: int,
) -> int:
    """How many mutations of a file were refused; anything but a sentence fails the test."""
    whole, refused = path.read_bytes(), 0
    tracemalloc.start()
    try:
        for number in range(count):
            rng = random.Random(seed * 1_000_003 + number)
            path.write_bytes(mutate(whole, rng))
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                read()
            except MimoError as error:
                assert str(error).strip()
                refused += 1
            except BaseException as error:
                error.add_note(f"mutation {number} of {path.name}: {path.read_bytes()[:2000]!r}")
                raise
            taken = tracemalloc.get_traced_memory()[1] - before
            assert taken < MEMORY + 40 * len(whole), f"mutation {number} took {taken} bytes"
    finally:
        tracemalloc.stop()
        path.write_bytes(whole)
    return refused


COUNTS = (FEW, pytest.param(MANY, marks=pytest.mark.slow))


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
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_tokenizers(golden: Golden, tmp_path: Path, name: str, count: int) -> None:
    for path in (golden.folder / "text_tokenizer").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def read() -> object:
        return TextTokenizer.from_folder(tmp_path).encode("Hello <|im_end|> 你好", special=False)

    try_all(tmp_path / name, count // 4, mutated_json, read, 5)
