"""What a program may give in place of what a task needs, and the sentence for what it may not.

Numbers of any kind are plain numbers afterwards.
"""

import operator
from typing import Any

import numpy as np
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import ModelSpec
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.chat.segments import Grid

SEEDS = 1 << 128


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """A whole number of any kind, numpy's included, as int. Raises InputError that names it."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        limits = f"{least} or more" if most is None else f"from {least} to {most}"
        raise InputError(f"{name} must be a whole number, {limits}, not {value!r}")
    return number


def checked_limits(max_new: object, min_new: object, seed: object) -> tuple[int | None, int, int]:
    """The limits of an answer as plain numbers. Raises InputError for what no answer can have."""
    return (
        None if max_new is None else whole_number("max_new", max_new, 1),
        whole_number("min_new", min_new, 0),
        whole_number("seed", seed, 0, SEEDS - 1),
    )


def check_options(options: Any) -> None:
    """Check the fields of a frozen `Options` and make its numbers plain; for its __post_init__."""
    for name in ("text", "audio"):
        value = getattr(options, name)
        if not isinstance(value, Sampling | None):
            raise InputError(f"options.{name} must be a Sampling or None, not {value!r}")
    if not isinstance(options.template, str | None):
        raise InputError(f"options.template must be text or None, not {options.template!r}")
    limits = checked_limits(options.max_new, options.min_new, options.seed)
    for name, number in zip(("max_new", "min_new", "seed"), limits, strict=True):
        object.__setattr__(options, name, number)


def as_grid(history: object) -> Grid | None:
    """A history: `Result.history`, or the `Result` that has it. Raises InputError for another."""
    found = getattr(history, "history", history)
    if found is None or isinstance(found, np.ndarray):
        return found
    raise InputError(
        f"history must be a Result or its history, not {type(history).__name__}; read a file with "
        "read_history"
    )


def check_history(history: Grid, model: ModelSpec) -> None:
    """A history comes from outside: one of another model must not reach the backend. Raises
    InputError."""
    group = model.group_size
    fits = history.ndim == 2 and history.dtype == np.int64 and len(history) == 1 + model.n_q
    if fits and history.shape[1] % group == 0:
        text, codes = history[0, ::group], history[1:]
        limits = np.array((model.vocab_size, *model.code_vocab))[:, None]
        ids = np.concatenate((text.repeat(group)[None], codes))
        if ((ids >= 0) & (ids < limits)).all():
            return
    raise InputError(
        f"the history, {history.dtype} {list(history.shape)}, is not of this model; pass "
        "Result.history of the same bundle, or start without one"
    )
