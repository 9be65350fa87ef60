"""Estimates of long work: what is said of the time left comes true."""

import io
import math
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from mimo_edge.engines import recipe
from mimo_edge.engines import work as working
from mimo_edge.engines.components import Matrix
from mimo_edge.engines.quantized_piece import Plan
from mimo_edge.engines.recipe import Form
from mimo_edge.engines.work import Work
from mimo_edge.export import costs as costing
from mimo_edge.export.costs import HASHING, export_costs, tracing, writing_of
from mimo_edge.export.exporter import _stored
from mimo_edge.export.sources import Sources
from mimo_edge.export.tracers import ORDER
from mimo_edge.export.tracing_share import TracingShare
from mimo_edge.export.weights import Region, WeightReader
from mimo_edge.mimo_ref.tensor_files import TensorFiles
from mimo_edge.runtime.bundle.data_files import by_data_file
from mimo_edge.runtime.bundle.manifest import PIECES
from mimo_edge.scripts.checkpoint.shapes import preset_configs
from mimo_edge.scripts.progress import StageProgress
from safetensors.torch import save_file

# of the real model, measured: seconds of processor time
HASHED = 10.6
TRACED = {
    "mel": 2.5,
    "tokenizer_encoder": 30.3,
    "patch_encoder": 5.3,
    "backbone": 29.1,
    "patch_decoder": 14.9,
    "tokenizer_decoder": 95.8,
    "mel_stream": 23.3,
    "vocoder_stream": 13.7,
}
# seconds that one core writes a piece in int4-edge: millions of numbers, by what each costs
WRITTEN = {
    "mel": 0.01,
    "tokenizer_encoder": 0.42 * 25 + 0.21 * 11,
    "patch_encoder": 0.62 * 4.5 + 0.12 * 25,
    "backbone": 7.0 * 25 + 0.08 * 10,
    "patch_decoder": 0.27 * 25,
    "tokenizer_decoder": 0.63 * 25 + 0.2,
    "mel_stream": 0.63 * 25,
    "vocoder_stream": 0.2,
}
ALONE = 0.3  # of the writing, that only one core does


class Clock:
    """A time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def left(stream: io.StringIO) -> float | None:
    """What was said last."""
    found = re.findall(r"about (\d+) s left", stream.getvalue())
    return float(found[-1]) if found else None


def export_on_two_cores(
    work: Work, share: TracingShare, speed: Callable[[float], float], clock: Clock
) -> Iterator[None]:
    """An export as it goes: two processes trace, this one writes on both cores what is traced, all
    share the cores. `speed` is of a core at a time. After every step it is looked at."""
    step, done = 0.25, 0.0
    while done < HASHED:
        done += step * speed(clock.now)
        clock.now += step
        work.reach(HASHING, min(1.0, done / HASHED))
        yield
    queue, tracers = list(ORDER), [["", 0.0], ["", 0.0]]
    traced: set[str] = set()
    groups, writing_now, wrote = by_data_file(PIECES), "", 0.0
    waiting: list[str] = []
    while queue or waiting or writing_now or any(name for name, _ in tracers) or groups:
        for tracer in tracers:
            if not tracer[0] and queue:
                tracer[:] = [queue.pop(0), 0.0]
                share.hear(tracer[0], False)
        for group in list(groups):
            if set(group) <= traced:
                groups.remove(group)
                waiting += group
        if not writing_now and waiting:
            writing_now, wrote = waiting.pop(0), 0.0
        busy = [tracer for tracer in tracers if tracer[0]]
        threads = len(busy) + (2 - ALONE) * bool(writing_now)
        each = step * speed(clock.now) * min(1.0, 2 / max(threads, 1))
        clock.now += step
        for tracer in busy:
            tracer[1] += each
            if tracer[1] >= TRACED[tracer[0]]:
                traced.add(tracer[0])
                share.hear(tracer[0], True)
                tracer[:] = ["", 0.0]
        if writing_now:
            wrote += each * (2 - ALONE)
            part = min(1.0, wrote / WRITTEN[writing_now])
            work.reach(writing_of(writing_now), part)
            writing_now = "" if part == 1 else writing_now
        yield


@pytest.mark.parametrize(
    "speed",
    [lambda _: 1.0, lambda _: 0.3, lambda now: 0.4 if now % 60 < 30 else 0.8],
    ids=["measured", "slow", "varying"],
)
def test_an_export_of_the_real_model_is_foretold(
    speed: Callable[[float], float], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a fifth of its time on, within 30 percent of the whole."""
    monkeypatch.setattr(working.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(costing, "processes_for", lambda _: 2)
    sources = Sources(*preset_configs("real"), None, [], [])  # type: ignore[arg-type]
    costs = export_costs(sources, recipe.load("int4-edge"), "fp32", PIECES)
    costs[HASHING] = working.HASH * 18.62e9
    share = TracingShare({piece: costs[tracing(piece)] for piece in PIECES})
    stream = io.StringIO()
    plan = Work(costs, StageProgress(stream).work)
    for piece in PIECES:
        plan.watch(tracing(piece), partial(share.part, piece))
    plan.reach(HASHING, 0.0)
    said: list[tuple[float, float]] = []
    for _ in export_on_two_cores(plan, share, speed, clock):
        found = left(stream)
        if found is not None:
            said.append((clock.now, found))
            stream.truncate(0)
    whole = clock.now
    assert plan.done == plan.total
    late = [(now, now + rest) for now, rest in said if now > 0.2 * whole]
    assert len(late) > 5
    for now, foretold in late:
        assert 0.7 * whole < foretold < 1.3 * whole, f"at {now:.0f} of {whole:.0f} s"


def test_the_rate_is_that_of_this_run(clock: Clock) -> None:
    """Neither what was done before it nor what it takes over counts as work."""
    stream = io.StringIO()
    progress = StageProgress(stream)
    progress.report("checking the bundle", 0, 100)
    clock.now = 100.0
    progress.report("checking the bundle", 50, 100)
    assert left(stream) == 100
    plan = Work({"kept": 900.0, "a": 60.0, "b": 40.0}, progress.work)
    plan.drop("kept")
    plan.reach("a", 0.0)
    clock.now = 130.0
    plan.reach("a", 0.5)
    assert "30%, about 70 s left" in stream.getvalue()
    plan.reach("a", 1.0)
    clock.now = 150.0
    plan.reach("b", 0.5, "packing b")
    assert "packing b  80%, about 12 s left" in stream.getvalue()


def test_units_of_a_stage_are_its_own(clock: Clock) -> None:
    stream = io.StringIO()
    progress = StageProgress(stream)
    for stage in ("one", "two"):
        progress.report(stage, 2, 10, "steps")  # it goes on where another left off
        clock.now += 20
        progress.report(stage, 6, 10, "steps")
        assert f"{stage}  60% of 10 steps, about 20 s left" in stream.getvalue()


def test_what_is_being_traced_goes_on_as_what_was_traced(clock: Clock) -> None:
    share = TracingShare({"a": 10.0, "b": 40.0, "c": 1.0})
    share.hear("a", False)
    share.hear("b", False)
    clock.now = 5.0
    assert share.part("a") == share.part("b") == share.part("c") == 0
    share.hear("a", True)
    assert share.part("a") == 1 and share.part("b") == 0.25
    share.hear("c", False)
    clock.now = 100.0
    assert share.part("b") == share.part("c") == 1, "never more than all"


def test_all_numbers_of_a_piece_are_counted(tmp_path: Path) -> None:
    """Whatever their form: the last one that is written ends the stage."""
    shapes = {"backbone.a.weight": (64, 96), "backbone.b.weight": (64, 32), "backbone.c": (7,)}
    save_file({n: torch.ones(shape) for n, shape in shapes.items()}, tmp_path / "one.safetensors")
    weight = Matrix("backbone.a.weight", "backbone", 64, 96)
    form = Form("int4", 32, "search")
    plan = Plan(onnx.ModelProto(), {weight.name: weight}, {weight.name: form}, {})
    origins = SimpleNamespace(sources={name: name for name in shapes}, constants={})
    regions = [
        Region(name, torch.float32, shape[::-1], 0, 4 * math.prod(shape), len(shape) == 2)
        for name, shape in shapes.items()
    ]
    parts: list[float] = []
    reader = WeightReader([TensorFiles(tmp_path)], origins)
    for stored in _stored(reader, regions, plan, parts.append):
        list(stored.parts)
    assert len(parts) == 3 and parts == sorted(parts) and parts[0] > 0
    assert parts[-1] == pytest.approx(1)
