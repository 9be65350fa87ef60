"""What a user may not do, tested by root too: root may read and write everything."""

import os
import pickle
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
NOBODY = 65534


def as_other_user(do: Callable[[], T]) -> T:
    """Do something as a user without rights, in a child process; raise what it raises.

    What it needs must be imported already: the other user may not reach the interpreter's files.
    """
    if os.geteuid() != 0:
        return do()
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            outcome: tuple[T | None, BaseException | None] = (do(), None)
        except BaseException as error:
            outcome = (None, error)
        with open(writes, "wb") as file:
            pickle.dump(outcome, file)
        os._exit(0)
    os.close(writes)
    with open(reads, "rb") as file:
        result, raised = pickle.load(file)
    os.waitpid(child, 0)
    if raised is not None:
        raise raised
    return result
