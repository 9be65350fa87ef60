"""How much memory there is: of the machine, or of the container that a process is in."""

from pathlib import Path

import pytest
from mimo_edge.scripts import machine
from mimo_edge.scripts.machine import group_limits, memory_bytes


def group(folder: Path, name: str, limit: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(limit + "\n")


def test_a_container_of_version_2(tmp_path: Path) -> None:
    """Its own group and those above it count; "max" is no limit."""
    own, root = tmp_path / "own", tmp_path / "groups"
    own.write_text("0::/system/box/inner\n")
    group(root / "system" / "box", "memory.max", "2000000000")
    group(root / "system" / "box" / "inner", "memory.max", "max")
    group(root, "memory.max", "3000000000")
    assert sorted(group_limits(root, own)) == [2000000000, 3000000000]
    own.write_text("0::/\n")
    assert group_limits(root, own) == [3000000000]


def test_a_container_of_version_1(tmp_path: Path) -> None:
    """As Docker shows it inside: the path is the host's, and the own group is the root."""
    own, root = tmp_path / "own", tmp_path / "groups"
    own.write_text("5:cpu,cpuacct:/docker/1a\n4:memory:/docker/1a\n1:name=systemd:/docker/1a\n")
    group(root / "memory", "memory.limit_in_bytes", "500000000")
    assert group_limits(root, own) == [500000000]


def test_no_container(tmp_path: Path) -> None:
    assert group_limits(tmp_path, tmp_path / "none") == []


@pytest.mark.parametrize("limit", [4096, 1 << 60])
def test_the_smaller_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    before = memory_bytes()
    (tmp_path / "own").write_text("0::/\n")
    group(tmp_path, "memory.max", str(limit))
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN_GROUP", tmp_path / "own")
    found = memory_bytes()
    assert before is not None and found is not None
    assert found == limit if limit == 4096 else found >= before
