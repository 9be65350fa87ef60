"""Mutations of files: what JSON can hold where something else is expected, and broken bytes.

Whatever comes of it is taken or refused with a sentence, and costs little memory.
"""

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from mimo_edge.mimo_ref.errors import CheckpointError, ConfigError
from mimo_edge.runtime.bundle.errors import MimoError

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
            except (MimoError, CheckpointError, ConfigError) as error:
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
