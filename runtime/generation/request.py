"""One answer to generate, and what comes of it: steps, or what went wrong."""

from dataclasses import dataclass

import numpy as np
from mimo_edge.runtime.backends.base import Ints
from mimo_edge.runtime.chat.checks import checked_limits
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.chat.segments import Grid


@dataclass(frozen=True, eq=False)
class Request:
    """One answer to generate. `prompt` is a grid [1 + K, P * G]."""

    prompt: Grid
    text: Sampling
    audio: Sampling
    stop_ids: tuple[int, ...] = ()
    max_new: int | None = None  # patches; None = as many as the context holds
    min_new: int = 0  # patches before a stop id may come
    seed: int = 0

    def __post_init__(self) -> None:
        checked_limits(self.max_new, self.min_new, self.seed)


@dataclass(frozen=True, eq=False)
class Step:
    """One generated patch."""

    request_id: int
    index: int  # 0 for the first patch of the answer
    text_id: int
    codes: Ints | None  # [K, G], or None in a text patch
    last: bool
    stopped: bool  # it ended with a stop id, not with the length
    seconds: float  # that the loop took for it, the prefill included in the first
    backend_seconds: float  # of those, inside the backend


@dataclass(frozen=True, eq=False)
class Failure:
    """A request that has ended with an error; the others go on."""

    request_id: int
    error: Exception


Outcome = Step | Failure


def split_grid(grid: Grid, group_size: int) -> tuple[Ints, Ints]:
    """Grid [1 + K, P * G] -> text ids [P] and codes [P, K, G]."""
    patches = grid.reshape(grid.shape[0], -1, group_size)  # [1 + K, P, G]
    return patches[0, :, 0].copy(), np.ascontiguousarray(patches[1:].swapaxes(0, 1))


def join_steps(steps: list[Step], empty_codes: tuple[int, ...], group_size: int) -> Grid:
    """The generated grid [1 + K, P * G]; text ids are repeated over a patch, as upstream does."""
    empty = np.repeat(np.array(empty_codes, np.int64)[:, None], group_size, 1)
    columns = []
    for step in steps:
        codes = empty if step.codes is None else step.codes
        columns.append(np.concatenate((np.full((1, group_size), step.text_id), codes)))
    if not columns:
        return np.zeros((1 + len(empty_codes), 0), np.int64)
    return np.concatenate(columns, axis=1)
