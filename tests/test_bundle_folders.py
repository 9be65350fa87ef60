"""Where an export may write, what it may replace, and that nothing is lost while it does."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mimo_edge.parity.report_files import check_folder
from mimo_edge.runtime.bundle import folders
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.folders import (
    MARK,
    check_output,
    partial_of,
    replaced_of,
    take_place,
)
from mimo_edge.runtime.bundle.manifest import MANIFEST


def folder_with(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text(name)
    return path


def refusal(output: Path, *sources: Path, force: bool = True) -> str:
    with pytest.raises(InputError) as error:
        check_output(output, sources, force)
    return str(error.value)


def test_only_a_bundle_or_nothing_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert check_output(out, [], force=False) == out
    folder_with(out)
    assert check_output(out, [], force=False) == out
    (out / "thesis.txt").write_text("years of work")
    for force in (False, True):
        assert "holds thesis.txt and is no bundle" in refusal(out, force=force)
    (out / MANIFEST).write_text("{}")
    assert "--force" in refusal(out, force=False)
    assert check_output(out, [], force=True) == out


@pytest.mark.parametrize("names", [(), (MARK,), (MARK, "mel.onnx")])
def test_what_an_export_left_may_go(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder_with(tmp_path / "out.partial", *names)
    assert check_output(tmp_path / "out", [], force=False) == tmp_path / "out"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_partial_that_no_export_left_is_safe(tmp_path: Path, force: bool, kind: str) -> None:
    partial = tmp_path / "out.partial"
    if kind == "file":
        partial.write_text("")
    elif kind == "folder":
        folder_with(partial, "thesis.txt")
    else:
        partial.symlink_to(folder_with(tmp_path / "elsewhere", MARK))
    assert "out.partial is in the way" in refusal(tmp_path / "out", force=force)


def test_no_source_is_written_over(tmp_path: Path) -> None:
    for name in ("out", "out.partial", "out.replaced"):
        source = folder_with(tmp_path / name, MARK, MANIFEST)
        for read in (source, source / "weights"):
            assert f"{name} holds the checkpoint" in refusal(tmp_path / "out", read)
        shutil.rmtree(source)


def test_a_mount_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is a mount point" in refusal(Path("/"))
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "out")
    assert "is a mount point" in refusal(folder_with(tmp_path / "out"))


def test_a_folder_that_was_put_aside_is_in_the_way_of_the_next(tmp_path: Path) -> None:
    folder_with(tmp_path / "out", MANIFEST)
    folder_with(tmp_path / "out.replaced", "thesis.txt")
    assert "out.replaced is in the way" in refusal(tmp_path / "out")
    with pytest.raises(FileExistsError):
        take_place(folder_with(tmp_path / "new", "new"), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "out", "out.replaced"]
    shutil.rmtree(tmp_path / "out")
    take_place(tmp_path / "new", tmp_path / "out")
    assert (tmp_path / "out.replaced" / "thesis.txt").exists(), "nothing was replaced: not ours"


def test_it_takes_the_place(tmp_path: Path) -> None:
    folder_with(tmp_path / "out", "old")
    take_place(folder_with(tmp_path / "new", "new"), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def interrupted_after(calls: int) -> Callable[[Path, Path], None]:
    """`os.rename` that is interrupted just before or after it did its work so many times."""
    real, left = os.rename, iter(range(calls))

    def rename(source: Path, target: Path) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(source, target)

    return rename


@pytest.mark.parametrize("renames", [0, 1])
def test_ctrl_c_before_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """The old one is where it was, and the new one is not lost."""
    old, new = folder_with(tmp_path / "out", "old"), folder_with(tmp_path / "new", "new")
    fail, real = interrupted_after(renames), os.rename

    def rename(source: Path, target: Path) -> None:
        (real if source == replaced_of(old) else fail)(source, target)

    monkeypatch.setattr(folders.os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        take_place(new, old)
    assert (old / "old").exists() and (new / "new").exists()
    assert not replaced_of(old).exists() and not partial_of(old).exists()


def test_ctrl_c_while_the_old_one_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path, **_: object) -> None:
        raise KeyboardInterrupt

    old, new = folder_with(tmp_path / "out", "old"), folder_with(tmp_path / "new", "new")
    monkeypatch.setattr(folders.shutil, "rmtree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        take_place(new, old)
    assert (old / "new").exists() and not new.exists()


@pytest.mark.parametrize("where", [".", ".."])
def test_nobody_is_left_in_a_deleted_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A shell is in the current folder, and a report or bundle would take its place."""
    here = folder_with(tmp_path / "work")
    (here / "inner").mkdir()
    monkeypatch.chdir(here / "inner")
    assert "is the current folder, or holds it" in refusal(Path(where))
    with pytest.raises(InputError, match="is the current folder, or holds it"):
        check_folder(Path(where))
