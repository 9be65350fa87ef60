"""Signals that ask a program to end interrupt it as Ctrl-C does: what is half done is removed.

The exit code is 128 and the number of the signal, as a shell reports it: 143 for SIGTERM, which
supervisors take for an orderly end, 129 for SIGHUP.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ending_signals() -> Iterator[None]:
    """Let a signal of ENDING raise `Stopped` while the block runs; once, for what follows it must
    not end the tidying up. What the caller ignores, as `nohup` does, stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        for taken in before:
            signal.signal(taken, signal.SIG_IGN)
        raise Stopped(number)

    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def code_of(interruption: KeyboardInterrupt) -> int:
    """The exit code for an interruption, or for the one that it was raised from."""
    cause: BaseException | None = interruption
    while cause is not None:
        if isinstance(cause, Stopped):
            return 128 + cause.number
        cause = cause.__cause__ or cause.__context__
    return 128 + signal.SIGINT
