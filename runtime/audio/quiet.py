"""Libraries that write to stderr on their own."""

import contextlib
import os
import threading
from collections.abc import Iterator

_lock = threading.Lock()


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send file descriptor 2 nowhere, for one short call into a library.

    libmpg123 writes its warnings there and libsndfile offers no way to tell it not to. Another
    thread's words in that moment are lost too, so the block is as short as the call; one thread at
    a time, or two would restore each other's nowhere.
    """
    with _lock, contextlib.ExitStack() as stack:
        try:
            kept = os.dup(2)
        except OSError:  # closed: there is nothing to keep quiet
            yield
            return
        stack.callback(os.close, kept)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
        finally:
            os.close(nowhere)
        stack.callback(os.dup2, kept, 2)
        yield
