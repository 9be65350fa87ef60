"""The program of a process that traces: names in, traced pieces out, until its input ends."""

import os
import pickle
import sys
import traceback
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO


def main() -> None:
    """Answer every (pieces, name) of the standard input on the standard output, pickled.

    It listens before it imports torch: whoever starts it may be gone by then.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not get among the answers
    asked: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_listen, args=(sys.stdin.buffer, asked), daemon=True).start()
    from mimo_edge.export.traced import traced_piece

    while True:
        pieces, name = asked.get()
        try:
            answer = pickle.dumps(traced_piece(pieces, name))
        except BaseException as error:
            answer = _as_bytes(error)
        answers.write(answer)
        answers.flush()


def _listen(questions: BinaryIO, asked: "SimpleQueue[Any]") -> None:
    """Hand on what is asked; when who asks is gone, end at once, in the midst of a piece too."""
    try:
        while True:
            asked.put(pickle.load(questions))
    finally:
        os._exit(0)


def _as_bytes(error: BaseException) -> bytes:
    """An exception with where it came from, as far as it can be sent."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        answer = pickle.dumps(error)
        pickle.loads(answer)
    except Exception:
        answer = pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))
    return answer
