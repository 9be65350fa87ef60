"""Steps one after the other, each a process of its own: one that fails, hangs or dies of a fault in
a library never stops the next."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimo_edge.runtime.bundle.files import write_text
from mimo_edge.scripts.gpu.records import TABLE, Records, read_records, table

LEAST = 5.0  # seconds; with less left a step is not begun
LOG = "log.txt"
DONE = "[done]"  # how a step ended, as a record of it


@dataclass(frozen=True)
class Planned:
    """A step and the seconds that it may take."""

    step: str
    seconds: float


def run_steps(
    plan: Sequence[Planned],
    seconds: float,
    out: Path,
    command: Callable[[str], list[str]],
    say: Callable[[str], None] = print,
) -> bool:
    """Run them within `seconds` in all; returns whether every one ended well.

    `command(step)` is what a step's process runs. How each ended is a record of the step, beside
    what it wrote itself; its output goes into one log, and the table is written after each.
    """
    deadline, well = time.monotonic() + seconds, True
    for planned in plan:
        began = time.monotonic()
        allowed = min(planned.seconds, deadline - began)
        if allowed < min(LEAST, planned.seconds):
            ended = "not begun: no time is left"
        else:
            ended = _run(command(planned.step), allowed, out / LOG)
        record = f"[{ended}]"
        well = well and record == DONE
        Records(out, planned.step).add(record, time.monotonic() - began, "s")
        write_text(out / TABLE, table(read_records(out)))
        say(f"{planned.step}: {ended} after {time.monotonic() - began:.1f} s")
    return well


def _run(command: list[str], seconds: float, log: Path) -> str:
    """How it ended, in words. What it started ends with it."""
    with log.open("a", encoding="utf-8") as output:
        output.write(f"\n$ {' '.join(command)}\n")
        output.flush()
        # its output comes as it goes, so that what was cut says how far it came
        env = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"cut after its {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "done" if code == 0 else f"failed with {code}: see {LOG}"


def python(*words: str) -> list[str]:
    """A command of this interpreter. The working folder, which may be the tree, is no place to
    import from: its folders have other names there."""
    return [sys.executable, "-P", *words]
