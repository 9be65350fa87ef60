"""Threads of ONNX Runtime: one pool for all sessions of a process.

A session has a pool of its own unless told otherwise, and when its run has ended its threads go on
spinning for a while, in case of another. By then another session runs, on cores that are taken. In
one pool the thread that spins is the one that is wanted next.
"""

import os
import threading

import onnxruntime as ort
from mimo_edge.runtime.bundle.bundle import Bundle

# Weights from which on a step is worth waking a second thread for: below, a product is over before.
# Measured in docs/performance.md.
LARGE = 500_000_000  # bytes

_lock = threading.Lock()
_pool: int | None = None  # threads of the shared pool, once there is one


def threads_for(bundle: Bundle, asked: int | None) -> int:
    """As many as are asked for; else all cores for a large model, and one for a small one."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (cores or 1) if bundle.bytes >= LARGE else 1


def shares_pool(threads: int) -> bool:
    """Whether sessions with so many threads use the shared pool, which is made if there is none.

    The pool cannot change its size: the first that wants one says how large it is. One thread is
    the caller's own and needs no pool.
    """
    global _pool
    if threads == 1 or not hasattr(ort, "set_global_thread_pool_sizes"):
        return False
    with _lock:
        if _pool is None:
            ort.set_global_thread_pool_sizes(threads, 1)
            _pool = threads
        return _pool == threads
