"""Files that are written whole: whose they are, who may read them, and what a lock refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mimo_edge.parity.whole_folder import whole_folder
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.files import LOCK, PART, PREFIX, PRIVATE, replacing, write_bytes
from mimo_edge.runtime.bundle.lock import locked

HOLDS = """
import sys
from mimo_edge.runtime.bundle.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize(("umask", "usual"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions(tmp_path: Path, umask: int, usual: int) -> None:
    """A new file has those that every new file has, or the ones asked for; an old one keeps its."""
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "new", b"1")
        write_bytes(tmp_path / "private", b"1", PRIVATE)
        for permissions in (0o600, 0o640, 0o666):
            old = tmp_path / f"{permissions:o}"
            old.touch()
            old.chmod(permissions)
            write_bytes(old, b"2", PRIVATE)
            assert mode(old) == permissions and old.read_bytes() == b"2"
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == usual and mode(tmp_path / "private") == 0o600


def test_nobody_else_reads_it_while_it_is_written(tmp_path: Path) -> None:
    with replacing(tmp_path / "voice", PRIVATE) as temporary:
        assert mode(temporary) == 0o600
    old = tmp_path / "open"
    old.touch()
    old.chmod(0o644)
    with replacing(old) as temporary:
        assert mode(temporary) == 0o600, "what it will be is seen only when it is whole"
    assert mode(old) == 0o644


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.touch()
    real.chmod(0o600)
    link.symlink_to(real)
    write_bytes(link, b"2")
    assert link.is_symlink() and real.read_bytes() == b"2" and mode(real) == 0o600


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a pipe"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    """Root would have /dev/null replaced."""
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        os.mkfifo(tmp_path / "pipe")
        place.symlink_to(tmp_path / "pipe")
    before = place.lstat()
    with pytest.raises(FileExistsError, match="not a regular file"):
        write_bytes(place, b"1")
    assert os.path.samestat(before, place.lstat()), "it is still there"
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_the_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"is being written by process {other.pid} on "):
            locked(output).__enter__()
        other.kill()
    with locked(output):  # what is left of the killed one is no lock
        assert [path.suffix for path in tmp_path.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []


def test_folders_are_whole_or_not_there(tmp_path: Path) -> None:
    folder, theirs = tmp_path / "report", tmp_path / "report.partial"
    theirs.mkdir()
    (theirs / "thesis.txt").touch()
    with pytest.raises(OSError, match="full"), whole_folder(folder) as partial:
        (partial / "a").touch()
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["report.partial"]
    with whole_folder(folder) as partial:
        assert partial.name.startswith(PREFIX) and partial.suffix != PART
        (partial / "a").touch()
        killed = partial
    killed.mkdir()
    (killed / "half").touch()
    with whole_folder(folder) as partial:
        (partial / "b").touch()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        *("report", "report.partial", "report.partial/thesis.txt", "report/b"),
    ]
