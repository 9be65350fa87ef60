"""What a training run leaves on disk: its state, to go on from, and its log, to be plotted."""

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_told_to_stop = threading.Event()


class Journal:
    """Files of one stage in `folder`: state.pt, best.pt, log.jsonl."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.started = time.monotonic()

    def load(self, name: str = "state") -> dict[str, Any] | None:
        """The state saved last, or None before the first."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True)
        return state

    def save(self, state: dict[str, Any], name: str = "state") -> None:
        """Replace the state; an interruption leaves the old one or the new one."""
        partial = self.folder / f"{name}.partial"
        torch.save(state, partial)
        partial.rename(self.folder / f"{name}.pt")

    def log(self, step: int, **figures: float) -> None:
        """One line for the log and for the eye."""
        seconds = round(time.monotonic() - self.started, 1)
        line = {"step": step, "seconds": seconds} | {
            k: float(f"{v:.5g}") for k, v in figures.items()
        }
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        said = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(
            f"[{seconds:7.0f} s] {self.folder.name} step {step}  {said}",
            file=sys.stderr,
            flush=True,
        )

    def spent(self, minutes: float | None) -> bool:
        """Whether this session has used up its minutes, or was told to stop (SIGTERM)."""
        late = minutes is not None and time.monotonic() - self.started > 60 * minutes
        return late or _told_to_stop.is_set()


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """Inside, SIGTERM lets the running step end, so that the state can be saved."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: _told_to_stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _told_to_stop.clear()


def rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Learning rate: a short rise, level, and over the last half a cosine down to a fiftieth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    late = max(0.0, 2 * step / steps - 1)  # 0 .. 1 over the last half
    falling = 0.5 * (1 + float(torch.cos(torch.tensor(late * torch.pi))))
    return peak * (0.02 + 0.98 * falling)
