"""`python3 scripts/gpu/join.py PARTS KIT`: put a kit's parts together on the machine with the GPU.

Needs nothing but Python. PARTS is the folder with all parts; KIT is made. Prints the command that
runs the kit from this tree.
"""

import lzma
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

TREE = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("mimo_ref", "export", "engines", "runtime", "parity", "scripts")
PART = "kit.tar.xz."  # and a number


class Parts:
    """A file in parts, read as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._left = list(paths)
        self._file: BinaryIO | None = None

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, none at the end."""
        assert size >= 0
        while True:
            if self._file is None:
                if not self._left:
                    return b""
                self._file = self._left.pop(0).open("rb")
            if data := self._file.read(size):
                return data
            self._file.close()
            self._file = None


def join(parts: Path, kit: Path) -> None:
    """Unpack the kit, and let its `site` hold this tree."""
    found = sorted(parts.glob(f"{PART}*"))
    numbers = [int(path.name.removeprefix(PART)) for path in found]
    if not found or numbers != list(range(len(found))):
        sys.exit(f"{parts} has the parts {numbers}: some are missing")
    with (
        lzma.LZMAFile(Parts(found)) as stream,  # type: ignore[arg-type]
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        archive.extractall(kit, filter="data")
    link(kit / "site")


def link(site: Path) -> None:
    """Let `site` hold this tree as if it were installed there."""
    package = site / "mimo_edge"
    package.mkdir()
    for file in (TREE / "mimo_edge").glob("*.*"):
        shutil.copyfile(file, package / file.name)
    for folder in FOLDERS:
        (package / folder).symlink_to(TREE / folder)
    (site / "tests").symlink_to(TREE / "tests")


if __name__ == "__main__":
    join(Path(sys.argv[1]), Path(sys.argv[2]))
    site = Path(sys.argv[2], "site").resolve()
    # -P: the tree itself is no place to import from, its folders have other names there
    run = "-P -m mimo_edge.scripts.gpu run"
    print(f"PYTHONPATH={site} {sys.executable} {run} {sys.argv[2]} OUT --work DIR")
