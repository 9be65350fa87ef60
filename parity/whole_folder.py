"""Folders that are written whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mimo_edge.runtime.bundle.files import sync_tree
from mimo_edge.runtime.bundle.lock import beside

_PARTIAL = ".partial"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `folder` if the block ends well, and else goes.

    It has a hidden name of ours, so what a killed program left is removed by the next one, and
    nothing that somebody else has. A folder that is there is replaced. Whoever writes for long
    holds `runtime.bundle.lock.locked(folder)`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(folder, _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        sync_tree(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
