"""The pieces of a new bundle, written data file by data file, or taken over from before."""

from collections.abc import Callable, Iterable
from pathlib import Path

from mimo_edge.engines.weight_file import WeightFile
from mimo_edge.engines.work import Work
from mimo_edge.runtime.bundle.data_files import by_data_file, data_file
from mimo_edge.runtime.bundle.manifest import FileSpec, PieceSpec
from mimo_edge.runtime.bundle.unfinished import Finished, read_markers, write_markers

# writes the weights of a piece and its graph beside them; gives the graph's file
Write = Callable[[str, WeightFile], tuple[PieceSpec, FileSpec]]


def write_pieces(
    folder: Path,
    pieces: Iterable[str],
    key_of: Callable[[list[str]], str],
    write: Write,
    work: Work,
    resume: bool = True,
) -> dict[str, Finished]:
    """Every piece, finished. `key_of` says what the pieces of a data file are made from: with
    `resume`, those that were finished before from the same are kept, and are no work of this run.
    """
    groups = by_data_file(pieces)
    keys = [key_of(group) for group in groups]
    kept = [
        read_markers(folder, group, key) if resume else None
        for group, key in zip(groups, keys, strict=True)
    ]
    for group, there in zip(groups, kept, strict=True):
        if there is not None:
            for piece in group:
                work.drop(piece)
            work.say(f"kept {', '.join(group)}")
    finished: dict[str, Finished] = {}
    for group, key, there in zip(groups, keys, kept, strict=True):
        if there is None:
            with WeightFile(folder / data_file(group[0])) as data:
                made = {piece: write(piece, data) for piece in group}
            there = write_markers(folder, key, made, data.spec)
        finished |= there
    return finished
