"""Everything that a bare machine needs to be measured, in parts that can be sent one by one."""

import importlib.metadata
import lzma
import shutil
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from mimo_edge.engines.recipe import load
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.scripts.gpu.hollow import hollow
from mimo_edge.scripts.gpu.join import PART
from mimo_edge.scripts.gpu.slim import slim
from mimo_edge.scripts.gpu.wheels import download, unpack

CUDA_LIBRARY = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
# weights lie in a bundle several times, megabytes apart
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 28}]


def make_kit(
    out: Path,
    bundles: Mapping[str, Path],
    real: Path,
    recipes: tuple[str, ...],
    python: str,
    architecture: int | None,
    part_bytes: int,
) -> list[Path]:
    """Write a kit's parts into a new folder; returns them.

    `bundles` are those that go whole, by name; `real` is a float bundle of the real size that goes
    hollow, as it is and as the `recipes` store it; code for other GPUs than `architecture` (90 for
    9.0) is left out. Raises InputError, EnvironmentProblem.
    """
    if out.exists():
        raise InputError(f"{out} exists already. Choose a new folder.")
    kit = out / "kit"
    (kit / "site").mkdir(parents=True)
    wheels = download(out / "wheels", python)
    unpack(wheels, kit / "site")
    if architecture is not None:
        found = slim(kit / "site" / CUDA_LIBRARY, architecture)
        if architecture not in found:
            raise InputError(
                f"this onnxruntime-gpu has no code for architecture {architecture}, only for "
                f"{', '.join(map(str, sorted(found)))}"
            )
    own_metadata(kit / "site")
    for name, path in bundles.items():
        shutil.copytree(path, kit / "bundles" / name)
    opened = Bundle.open(real, verify=False)
    hollow(opened, kit / "hollow" / opened.manifest.recipe)
    for recipe in recipes:
        hollow(opened, kit / "hollow" / recipe, load(recipe))
    parts = pack(kit, out, part_bytes)
    shutil.rmtree(kit)
    shutil.rmtree(out / "wheels")
    return parts


def pack(kit: Path, out: Path, part_bytes: int) -> list[Path]:
    """One compressed archive of a folder, in parts."""
    writer = _Parts(out, part_bytes)
    with (
        lzma.LZMAFile(writer, "wb", format=lzma.FORMAT_XZ, filters=FILTERS) as stream,  # type: ignore[arg-type]
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        archive.add(kit, arcname=".")
    writer.close()
    return writer.paths


class _Parts:
    """A file that is written in parts."""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self.paths: list[Path] = []
        self._folder, self._most, self._held = folder, part_bytes, BytesIO()

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            taken = view[: self._most - self._held.tell()]
            self._held.write(taken)
            view = view[len(taken) :]
            if self._held.tell() == self._most:
                self.close()
        return len(data)

    def close(self) -> None:
        """The part that is begun is written."""
        if not self._held.tell():
            return
        path = self._folder / f"{PART}{len(self.paths):03}"
        path.write_bytes(self._held.getvalue())
        self.paths.append(path)
        self._held = BytesIO()


def own_metadata(site: Path) -> None:
    """What says the version and the extras of this package; the package itself is the tree.

    From a clone, the clone's own .egg-info may be found first: it has the same in another file.
    """
    distribution = importlib.metadata.distribution("mimo-edge")
    folder = site / f"mimo_edge-{distribution.version}.dist-info"
    folder.mkdir()
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")
    assert text is not None
    (folder / "METADATA").write_text(text, encoding="utf-8")
