"""Engine folders: what is found in a bundle, what a build leaves there and keeps in memory.

Nothing is traced and no TensorRT builds: bundles are hollow, plans a few bytes.
"""

import dataclasses
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mimo_edge.engines import build as build_module
from mimo_edge.engines.bundle_recipe import for_bundle
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import MANIFEST, read
from mimo_edge.runtime.bundle.engine_folders import find, home_of, name_of
from mimo_edge.runtime.bundle.errors import EngineError, RecipeError, ResourceError
from mimo_edge.runtime.bundle.files import hash_file
from mimo_edge.runtime.bundle.manifest import PIECES
from mimo_edge.scripts.cli import main

from tests.bundles import hollow
from tests.engines.fake_builds import VERSION, WANTED, Builds, built, identity_of


def test_classic_engines_are_found(bundle: Bundle, builds: Builds) -> None:
    """The timing cache lies apart, and that of an earlier version is passed over."""
    folder, manifest = built(bundle)
    assert find(bundle, WANTED) == (folder, manifest)
    (folder.parent / f"trt-{VERSION}-8.9.timing").write_bytes(b"learned")
    assert find(bundle, WANTED) == (folder, manifest)


def test_the_next_build_is_given_what_the_last_one_measured(bundle: Bundle, builds: Builds) -> None:
    for max_seq in (32, 48):
        built(bundle, max_seq)
    learned = [f"after {piece}".encode() for piece in PIECES]
    assert builds.given == [b"", *learned[:-1], learned[-1]], "the second builds the backbone alone"
    assert {p.name for p in home_of(bundle).iterdir() if "sm89" not in p.name} == {"timing"}


def test_one_plan_is_in_memory_at_a_time(bundle: Bundle, builds: Builds) -> None:
    """`Builds` looks for the earlier ones; what is on disk is what was built."""
    folder, manifest = built(bundle)
    for piece in PIECES:
        assert (folder / f"{piece}.plan").read_bytes() == piece.encode()
        assert manifest.plans[piece].file == hash_file(folder / f"{piece}.plan")


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.EIO, "cannot be read"), (errno.EACCES, "may not be read; change its permissions")],
)
@pytest.mark.parametrize("name", [MANIFEST, "backbone.plan"])
def test_what_cannot_be_read_is_refused(
    bundle: Bundle,
    builds: Builds,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: int,
    says: str,
) -> None:
    folder, _ = built(bundle)
    real = Path.open

    def broken(self: Path, *args: Any, **more: Any) -> Any:
        if self == folder / name:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, *args, **more)

    monkeypatch.setattr(Path, "open", broken)
    monkeypatch.setattr(Path, "read_text", lambda self, **kw: broken(self, **kw).read())
    with pytest.raises(EngineError, match=f"(?s){name} {says}.*mimo-edge build"):
        find(bundle, WANTED)


def test_hashes_are_skipped_on_demand(bundle: Bundle, builds: Builds) -> None:
    """An altered plan of the same size is refused; a bundle opened without hashing takes it."""
    found = built(bundle)
    (found[0] / "backbone.plan").write_bytes(b"BACKBONE")
    with pytest.raises(EngineError, match=r"backbone\.plan is truncated or altered"):
        find(bundle, WANTED)
    trusted = Bundle(bundle.folder, bundle.manifest, verify=False)
    assert find(trusted, WANTED) == found
    (found[0] / "backbone.plan").write_bytes(b"cut")
    with pytest.raises(EngineError, match=r"backbone\.plan is truncated or altered"):
        find(trusted, WANTED)


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"")
    with pytest.raises(EngineError, match="cannot be read"):
        read(tmp_path / "engine")


def test_a_build_without_disk_leaves_no_folder(
    bundle: Bundle, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(ResourceError, match="GB free, the engines need"):
        built(bundle)
    assert not home_of(bundle).exists()


def test_a_recipe_in_another_precision_than_the_bundle(tmp_path: Path) -> None:
    bundle = hollow(tmp_path / "bundle", "fp16")
    assert for_bundle(bundle, None).name == "fp16"
    with pytest.raises(RecipeError, match="was made by recipe fp16, not bf16"):
        for_bundle(bundle, "bf16")


def test_dry_run_loads_nothing(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """The graphs are no graphs: to load one would fail."""
    words = ["build", str(bundle.folder), "--target", "ort-cuda"]
    assert main([*words, "--dry-run"]) == 0
    assert "builds nothing" in capsys.readouterr().out
    assert main([*words, "--dry-run", "--json"]) == 0
    assert '"built": []' in capsys.readouterr().out
    assert main(words) == 3


def test_no_patches_are_refused(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build", str(bundle.folder), "--target", "trt-rtx:8.9", "--dry-run", "--max-seq", "0"]
    assert main(words) == 2
    assert "--max-seq 0: choose 2 to 64" in capsys.readouterr().err


def test_identity_names_the_folder(bundle: Bundle) -> None:
    identity = dataclasses.replace(identity_of(bundle), capabilities=("8.6", "12.0"))
    assert name_of(identity) == f"trt-{VERSION}-sm86_120-fp32-s32-b1"
