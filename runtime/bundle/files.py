"""Files: hashes of them, and writing that leaves a whole file or none."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from mimo_edge.runtime.bundle.manifest import FileSpec

CHUNK = 1 << 22  # bytes read at a time while hashing


def hash_file(path: Path) -> FileSpec:
    """sha256 and size of a file."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks(path):
        digest.update(chunk)
        size += len(chunk)
    return FileSpec(digest.hexdigest(), size)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a failure leaves nothing behind."""
    # not made from the target's name, which may already be as long as a name can be
    temporary = path.with_name(f".mimo-edge-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
