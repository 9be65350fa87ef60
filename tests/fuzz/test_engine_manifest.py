"""engine.json of odd content: EngineError or a manifest that means the same, and nothing else."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import (
    MANIFEST,
    EngineManifest,
    Identity,
    PieceIdentity,
    PlanSpec,
    piece_hashes,
    read,
)
from mimo_edge.runtime.bundle.engine_folders import Trust, Wanted, find
from mimo_edge.runtime.bundle.errors import EngineError
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.manifest import PIECES

from tests.bundles import hollow

WANTED = Wanted("trt", "11.4.1.1", "8.9")
COUNTS = (1000, pytest.param(6000, marks=pytest.mark.slow))
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "x", "../../x", "\ud800", "\x1b[31m", "8.9", "0" * 64, [], [[]], [1], {}, {"": None},
    {"mel": {}}, [[1, 2], [3]],
)  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path) -> tuple[Bundle, Path]:
    """A bundle and an engine folder that fits it."""
    bundle, folder = hollow(tmp_path / "bundle"), tmp_path / "trt-engine"
    folder.mkdir()
    shapes = {"x": ((1, 1), (1, 2), (2, 512))}
    identity = Identity(
        product="trt",
        version=WANTED.version,
        capabilities=("8.9",),
        flags=("STRONGLY_TYPED",),
        recipe="fp32",
        max_seq=32,
        max_batch=2,
        pieces={
            piece: PieceIdentity(*piece_hashes(bundle, piece), "0" * 64, "fp32", ({},))
            for piece in PIECES
        }
        | {"mel": PieceIdentity(*piece_hashes(bundle, "mel"), "0" * 64, "fp32", ({}, shapes))},
    )
    plans = {}
    for piece in PIECES:
        (folder / f"{piece}.plan").write_bytes(b"plan")
        file = hash_file(folder / f"{piece}.plan")
        plans[piece] = PlanSpec(identity.key(piece), file, 1.5, 0)
    write_text(folder / MANIFEST, EngineManifest(identity, plans, "0" * 64).to_json())
    return bundle, folder


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON value."""
    below: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        below = list(value.items() if isinstance(value, dict) else enumerate(value))
    found = [path] if path else []
    for key, item in below:
        found += places(item, (*path, key))
    return found


def mutated(raw: dict[str, Any], rng: random.Random, where: list[tuple[Any, ...]]) -> Any:
    """One to three values replaced, taken out, doubled or given another name."""
    raw = copy.deepcopy(raw)
    for _ in range(rng.randint(1, 3)):
        *parents, last = rng.choice(where)
        try:
            holder: Any = raw
            for key in parents:
                holder = holder[key]
            match rng.randrange(4):
                case 0:
                    del holder[last]
                case 1 if isinstance(holder, dict):
                    holder[rng.choice(("", "mel", "x", "__class__"))] = holder.pop(last)
                case 2:
                    holder[last] = [holder[last], holder[last]]
                case _:
                    holder[last] = rng.choice(ODD)
        except (LookupError, TypeError):
            pass  # an earlier change took the place away
    return raw


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_values(engine: tuple[Bundle, Path], count: int) -> None:
    bundle, folder = engine
    sound = read(folder)
    raw, rng = json.loads((folder / MANIFEST).read_text()), random.Random(15)
    where, refused, told_apart = places(raw), 0, set()
    for _ in range(count):
        text = json.dumps(mutated(raw, rng, where))
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        try:
            found = read(folder)
            assert json.loads(found.to_json()) == json.loads(text), "read as it stands there"
            assert all(type(n) is int for n in (found.identity.max_seq, found.identity.max_batch))
        except EngineError as error:
            refused += 1
            told_apart.add(str(error).removeprefix(str(folder))[:60])
            str(error).encode()  # a terminal must be able to show it
            assert "\x1b" not in str(error)
        with pytest.raises(EngineError):  # mel has two profiles: it is never taken
            find(bundle, WANTED, Trust(folder))
    assert refused > 0.9 * count and len(told_apart) > 5
    (folder / MANIFEST).write_text(json.dumps(raw))
    assert read(folder) == sound


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_bytes(engine: tuple[Bundle, Path], count: int) -> None:
    _, folder = engine
    sound, rng = (folder / MANIFEST).read_bytes(), random.Random(16)
    for _ in range(count // 3):
        content = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(content))
            content[at : at + rng.randint(0, 30)] = rng.randbytes(rng.randint(0, 4))
        (folder / MANIFEST).write_bytes(content)
        try:
            read(folder)
        except EngineError:
            continue


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"[" * 100_000, b"\xff\xfe{}", b'{"schema": 3}', b"9" * 5000, b"{}" * 9],
)
def test_no_manifest_at_all(engine: tuple[Bundle, Path], content: bytes) -> None:
    _, folder = engine
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(EngineError, match=r"is damaged.*mimo-edge build"):
        read(folder)


def test_too_large_to_be_one(engine: tuple[Bundle, Path]) -> None:
    """It is not read into memory."""
    _, folder = engine
    with (folder / MANIFEST).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(EngineError, match="at most 4 MB"):
        read(folder)
