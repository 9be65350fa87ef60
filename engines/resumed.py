"""The pieces of a new bundle, written data file by data file, or taken over from before."""

from collections.abc import Callable, Iterable
from pathlib import Path

from mimo_edge.engines.weight_file import WeightFile
from mimo_edge.engines.work import Work
from mimo_edge.runtime.bundle.data_files import by_data_file, data_file
from mimo_edge.runtime.bundle.manifest import FileSpec, PieceSpec
from mimo_edge.runtime.bundle.unfinished import Finished, read_markers, write_markers

Group = list[str]  # the pieces of one data file
KeyOf = Callable[[Group], str]  # what they are made from
# writes the weights of a piece and its graph beside them; gives the graph's file
Write = Callable[[str, WeightFile], tuple[PieceSpec, FileSpec]]


def write_pieces(
    folder: Path,
    pieces: Iterable[str],
    key_of: KeyOf,
    write: Write,
    work: Work,
    resume: bool = True,
) -> dict[str, Finished]:
    """Every piece, finished: with `resume` kept if it can be, or else written now. The stages of
    `work` are called as the pieces."""
    groups = by_data_file(pieces)
    finished = keep_pieces(folder, groups, key_of, work) if resume else {}
    for group in groups:
        if group[0] not in finished:
            finished |= write_group(folder, group, key_of(group), write)
    return {piece: finished[piece] for group in groups for piece in group}


def keep_pieces(
    folder: Path,
    groups: Iterable[Group],
    key_of: KeyOf,
    work: Work,
    stages: Callable[[str], Iterable[str]] = lambda piece: (piece,),
) -> dict[str, Finished]:
    """The pieces that were finished before from the same, those of a data file all or none. Their
    `stages` are no work of this run."""
    finished: dict[str, Finished] = {}
    for group in groups:
        there = read_markers(folder, group, key_of(group))
        if there is not None:
            finished |= there
            for stage in (stage for piece in group for stage in stages(piece)):
                work.drop(stage)
            work.say(f"kept {', '.join(group)}")
    return finished


def write_group(folder: Path, group: Group, key: str, write: Write) -> dict[str, Finished]:
    """The pieces of one data file, written now, and marked as finished from what the key says."""
    with WeightFile(folder / data_file(group[0])) as data:
        made = {piece: write(piece, data) for piece in group}
    return write_markers(folder, key, made, data.spec)
