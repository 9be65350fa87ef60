"""Builds in a process of their own, by TensorRT itself: what a search for a layer asks for."""

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from mimo_edge.engines.apart import Request, build_apart
from mimo_edge.engines.profiles import profiles
from mimo_edge.parity.tap import given_of, output_of
from mimo_edge.parity.tapped_graph import TappedGraph
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import EngineError

from tests.bundles import exported
from tests.engines.tapped_builds import LAYER
from tests.engines.targets import LIMITS, ONE
from tests.golden import Golden


def test_tensorrt_builds_what_is_searched(golden: Golden, tmp_path: Path) -> None:
    """The piece with one output more, and a layer's attention alone, with the cache that is written
    in it: networks with the ports by which they are run, and plans in files that are left alone."""
    bundle = Bundle.open(exported(golden, golden.lm_names[0]))
    path, whole = bundle.path("backbone"), profiles(bundle, "backbone", LIMITS)[0]
    graph = TappedGraph("backbone", path, bundle.model.n_q)
    start, end = (
        next(t for t in graph.taps if t.name == LAYER.format(1, name))
        for name in ("input_layernorm", "post_attention_layernorm")
    )
    segment, given = graph.segment(start, end), given_of(start)
    state = ((1, 1, bundle.model.hidden_size),) * 3
    ranges = {port.name: whole.get(port.name, state) for port in segment.graph.input}
    assert {given, "past_keys_1", "past_values_1", "past_lengths"} <= set(ranges)
    one_row = {name: ((1, *r[0][1:]),) * 3 for name, r in ranges.items()}
    models = {"tapped": (graph.with_outputs([end]), whole), "segment": (segment, one_row)}
    models["all"] = (graph.with_outputs([t for t in graph.taps if t.is_norm]), whole)
    for name, (model, profile) in models.items():
        heard: list[str] = []
        request = Request(ONE, path, (profile,), LIMITS.max_seq)
        shown = {port.name for port in model.graph.output}
        assert output_of(end.name) in shown and "present_keys_1" in shown
        build_apart(request, model, tmp_path / f"{name}.plan", lambda p, *_, h=heard: h.append(p))
        assert "Building engine" in heard
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"tapped.plan", "segment.plan", "all.plan"}
    assert sizes["segment.plan"] < sizes["tapped.plan"] and min(sizes.values()) > 1000


def test_a_build_apart_fails_and_is_stopped_as_one_here(
    golden: Golden,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And it runs nothing that lies in the current folder."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "onnx.py").write_text("raise SystemExit('not ours')", encoding="utf-8")
    bundle = Bundle.open(exported(golden, golden.lm_names[0]))
    path, ranges = bundle.path("backbone"), profiles(bundle, "backbone", LIMITS)
    model = onnx.load(path, load_external_data=False)
    monkeypatch.chdir(elsewhere)
    short = ({n: r for n, r in ranges[0].items() if n != "embeddings"},)
    with pytest.raises(EngineError, match="does not build backbone"):
        build_apart(Request(ONE, path, short, LIMITS.max_seq), model, tmp_path / "a.plan")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_apart(Request(ONE, path, ranges, LIMITS.max_seq), model, tmp_path / "a.plan", stop)
    assert not list(tmp_path.iterdir())


def test_what_libraries_print_is_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number, and null, are JSON as well."""
    child = tmp_path / "child"
    child.write_text(
        f"#!{sys.executable}\n"
        "print('0', 'null', '[1]', '{}', 'words', sep='\\n')\n"
        """print('{"phase": "Building", "done": 1, "total": 2}')\n""",
        encoding="utf-8",
    )
    child.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(child))
    heard: list[tuple[str, int, int]] = []
    request = Request(ONE, tmp_path / "x.onnx", (), 1)
    build_apart(request, onnx.ModelProto(), tmp_path / "x.plan", lambda *said: heard.append(said))
    assert heard == [("Building", 1, 2)]
