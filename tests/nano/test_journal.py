"""What a run leaves on disk, and how it stops."""

import os
import signal
from pathlib import Path

import pytest
import torch
from mimo_edge.scripts.nano.journal import Journal, heeding_sigterm, rate
from mimo_edge.scripts.nano.plots import read_log


def test_state_and_log_come_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "stage")
    assert journal.load() is None
    journal.save({"x": torch.ones(2), "done": 3})
    journal.save({"x": torch.zeros(2), "done": 4})
    state = Journal(tmp_path / "stage").load()
    assert state is not None
    assert state["done"] == 4
    journal.log(50, mel=0.5)
    journal.log(100, mel=0.25, text=1.0)
    assert read_log(tmp_path / "stage") == {"mel": [(50, 0.5), (100, 0.25)], "text": [(100, 1.0)]}


def test_a_terminated_run_is_told_to_stop(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with heeding_sigterm():
        assert not journal.spent(None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert journal.spent(None)
    assert not journal.spent(None)
    assert signal.getsignal(signal.SIGTERM) == before


def test_minutes_run_out(tmp_path: Path) -> None:
    assert Journal(tmp_path).spent(0.0)
    assert not Journal(tmp_path).spent(5.0)


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [rate(step, 1000, 1.0, warmup=100) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[100] == rates[500] == 1.0
    assert rates[501:] == sorted(rates[501:], reverse=True)
    assert rates[-1] == pytest.approx(0.02, abs=0.001)
