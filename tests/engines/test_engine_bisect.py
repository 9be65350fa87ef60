"""`validate --bisect` on TensorRT: few engines, each with one output more, until a layer is named.

The engines that are searched run on the stand-in; that TensorRT builds such engines is in
`test_apart`.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from mimo_edge.engines.apart import Request
from mimo_edge.parity import engine_maker, report_files
from mimo_edge.parity.engine_bisect import ANOTHER, EngineBisection
from mimo_edge.parity.engine_maker import EngineMaker, passing_folder
from mimo_edge.parity.findings import Bisected
from mimo_edge.parity.judge import Verdict
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.reference_side import ReferenceSide
from mimo_edge.parity.tapped_graph import TappedGraph
from mimo_edge.parity.thresholds import Thresholds
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.backends.trt import TrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import EngineError, EnvironmentProblem, ResourceError
from mimo_edge.scripts import bisecting, validate
from mimo_edge.scripts.cli import main

from tests.bundles import exported
from tests.engines.conftest import Fault, open_on
from tests.engines.fake_cuda import FakeCuda
from tests.engines.tapped_builds import LAYER, PRODUCT, FakeBuilds, wrong_product
from tests.golden import Golden
from tests.reports.json_schema import problems
from tests.reports.planted import Planted
from tests.reports.test_planted_faults import BUNDLE_FAULTS

SCHEMA = Path(report_files.__file__).with_name("report.schema.json")
ALLOWED = 85.0  # dB, as `layer_snr` has it for float32
BEFORE, AFTER = LAYER.format(1, "post_attention_layernorm"), LAYER.format(2, "input_layernorm")
WEIGHTS = ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm")
FakeEngines = Callable[..., tuple[Bundle, Path]]


class Search:
    """Engines of a bundle on the stand-in, which TensorRT builds as `builds` does."""

    def __init__(
        self,
        backend: TrtBackend,
        builds: FakeBuilds,
        search: Callable[[TrtBackend, str | None, float], Bisected],
        cuda: FakeCuda,
    ) -> None:
        self.backend, self.builds, self._search, self.cuda = backend, builds, search, cuda

    def __call__(self, failed: str | None, allowed: float = ALLOWED) -> Bisected:
        return self._search(self.backend, failed, allowed)


@pytest.fixture
def new_search(
    golden: Golden,
    fake_engines: FakeEngines,
    reference: ReferenceSide,
    own: Recording,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Search]]:
    open_backends: list[tuple[TrtBackend, FakeCuda]] = []

    def search(backend: TrtBackend, failed: str | None, allowed: float) -> Bisected:
        held = backend.device.allocated
        with passing_folder(tmp_path / "report") as folder:
            maker = EngineMaker(backend, folder, lambda *_: None)
            found = EngineBisection(reference, maker, own, allowed).run(failed)
            assert not list(folder.iterdir()), "an engine is left"
        assert backend.device.allocated == held, "a search leaves memory on the GPU"
        return found

    def new(bundle: Bundle | None = None, fault: Fault = lambda *_: None, gone: str = "") -> Search:
        bundle, _ = fake_engines(golden.lm_names[0], bundle=bundle, fault=fault)
        cuda = FakeCuda()
        backend = open_on(bundle, cuda)
        open_backends.append((backend, cuda))
        (tmp_path / "graphs").mkdir()
        builds = FakeBuilds(tmp_path / "graphs", fault, gone)
        monkeypatch.setattr(engine_maker, "build_apart", builds)
        return Search(backend, builds, search, cuda)

    yield new
    for backend, cuda in open_backends:
        with backend:
            pass
        assert not cuda.leaks()
        assert backend._trt.alive() == 0, "an engine of the search outlives it"


@pytest.mark.parametrize("name", BUNDLE_FAULTS)
def test_a_fault_in_a_bundle_is_named_by_few_engines(
    name: str, new_search: Callable[..., Search], golden: Golden, tmp_path: Path
) -> None:
    """The faults that a bisection on ONNX Runtime names, and the same names."""
    plant, stage, after, tap, weight = BUNDLE_FAULTS[name]
    planted = Planted(exported(golden, golden.lm_names[0]), tmp_path / "bundle")
    plant(planted)
    search = new_search(Bundle.open(planted.folder))
    # what comes before the text scores of a prompt is not seen from outside
    found = search("backbone, prefill" if stage == "patch_encoder" else stage)
    (finding,) = found.findings
    assert (finding.stage, finding.after, finding.tap) == (stage, after, tap)
    assert finding.born and weight in finding.weights
    assert found.notes == (ANOTHER,) and all(engine.wrong for engine in found.engines)
    for engine in found.engines:  # none differs from that of the build
        assert engine.own.differ == 0 or (engine.own.snr or 0) > 100
    graph = TappedGraph(stage.split(",")[0], planted.folder / f"{stage.split(',')[0]}.onnx", 1)
    assert 1 <= len(search.builds.shown) <= 1 + math.ceil(math.log2(len(graph.taps) + 2))
    assert all(len(shown) == 1 for shown in search.builds.shown)


def test_an_error_that_goes_with_a_tap_names_no_layer(
    new_search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT gets wrong what it fuses across a place, which an output there prevents. And an
    engine that it does not build ends the search with a note: there is a report all the same."""
    search = new_search(fault=wrong_product, gone=AFTER)
    found = search("backbone, prefill")
    assert found.findings == ()
    last = found.engines[-1]
    assert last.tap == AFTER and not last.wrong and last.own.snr < ALLOWED
    assert all(engine.wrong for engine in found.engines[:-1])
    assert f"with {AFTER} as an output the error is gone" in found.notes[1]
    assert "no layer is named" in found.notes[1]

    def refuse(*_: Any) -> None:
        raise EngineError("TensorRT does not build backbone.onnx as it is")

    monkeypatch.setattr(engine_maker, "build_apart", refuse)
    found = search("backbone, prefill")
    assert found.findings == () and found.engines == ()
    assert "ended early. TensorRT does not build" in found.notes[1]


def test_a_full_gpu_ends_the_search_with_a_note(new_search: Callable[..., Search]) -> None:
    """Also before the first engine is built: that of the build finds no memory to run."""
    search = new_search(fault=wrong_product)
    cuda = search.cuda
    cuda.memory_bytes = cuda.used
    found = search("backbone, prefill")
    assert found.findings == () and found.engines == () and search.builds.shown == []
    assert "patch_encoder: the search ended early. a run of" in found.notes[1]
    assert "the GPU has 0.0 MB free" in found.notes[1]


def test_engines_that_do_not_open_again_cost_no_report(
    golden: Golden, own: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the build, which the recording has run: somebody else has the GPU's memory now."""

    def full(*_: Any, **__: Any) -> None:
        raise ResourceError("the engines need 9.0 MB, the GPU has 1.0 MB free.")

    monkeypatch.setattr(bisecting, "open_backend", full)
    lm, others = golden.folder / golden.lm_names[0], ["audio_tokenizer", "text_tokenizer"]
    parser = argparse.ArgumentParser()
    validate.add_arguments(parser)
    bundle = exported(golden, golden.lm_names[0])
    words = [str(bundle), "--against", str(lm), "--backend", "trt-rtx", "-o", str(tmp_path / "x")]
    for name in others:
        words += [f"--{name.replace('_', '-')}", str(golden.folder / name)]
    mine = replace(own, identity={**own.identity, "precision": "fp32"})
    verdict = Verdict(mine, own)
    args = parser.parse_args(words)
    found = bisecting.bisected(args, bundle, verdict, Thresholds.open(), lambda *_: None).bisected
    assert found is not None and found.findings == ()
    assert found.notes == (
        "No engine was built to look at layers. the engines need 9.0 MB, the GPU has 1.0 MB free.",
    )


def test_a_layer_is_named_though_its_segment_is_not_built(
    new_search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = new_search(fault=wrong_product)

    def refuse(request: Request, model: onnx.ModelProto, *others: Any) -> None:
        if any(port.name.startswith("given:") for port in model.graph.input):
            raise EngineError("TensorRT does not build backbone.onnx as it is")
        search.builds(request, model, *others)

    monkeypatch.setattr(engine_maker, "build_apart", refuse)
    found = search("backbone, prefill")
    (finding,) = found.findings
    assert (finding.after, finding.tap) == (BEFORE, AFTER) and PRODUCT in finding.weights
    assert finding.alone is None and finding.born is None
    assert "whether the error was born there is not known" in finding.sentence()
    assert "segment alone could not be run. TensorRT does not build" in found.notes[1]
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    said = {**asdict(finding), "born": finding.born, "sentence": finding.sentence()}
    said["weights"] = list(finding.weights)
    assert not list(problems(said, schema["$defs"]["finding"], schema))


def test_an_error_that_has_arrived_is_not_said_to_be_born(
    new_search: Callable[..., Search], golden: Golden, tmp_path: Path
) -> None:
    """A limit that the faulty layer itself just keeps: the next ones, which are right, do not."""
    planted = Planted(exported(golden, golden.lm_names[0]), tmp_path / "bundle")
    planted.weight("backbone", LAYER.format(0, "mlp.down_proj.weight"), lambda w: w * 1.05)
    search = new_search(Bundle.open(planted.folder))
    (born,) = search("backbone, prefill").findings
    assert born.born and born.tap == LAYER.format(1, "input_layernorm")
    (arrived,) = search("backbone, prefill", born.snr - 0.01).findings
    assert not arrived.born and arrived.snr < born.snr and arrived.alone > 100
    assert "arrived from before and grew" in arrived.sentence()


def test_where_there_is_nothing_to_search(new_search: Callable[..., Search]) -> None:
    search = new_search()
    assert "Every stage is in tolerance" in search(None).notes[0]
    assert "there are no layers to look at" in search("mel").notes[0]
    for failed in ("text", "tokenizer_decoder, streamed"):
        (note,) = search(failed).notes
        assert note.startswith(f"{failed}: on the first clip") and "are in tolerance" in note
    assert search.builds.shown == []


def test_the_command_line(
    golden: Golden,
    fake_engines: FakeEngines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A backend of TensorRT is judged and searched by one command. What is wrong is TensorRT's, not
    the bundle's: also the segment alone is an engine, and shows it. The report says what was built
    and holds to the schema; nothing is left beside it."""
    bundle, _ = fake_engines(golden.lm_names[0], fault=wrong_product)
    for module in (validate, bisecting):
        monkeypatch.setattr(module, "open_backend", lambda *_, **__: open_on(bundle, FakeCuda()))
    monkeypatch.setattr(bisecting, "CudaDevice", lambda: CudaDevice(bindings=FakeCuda()))
    (tmp_path / "graphs").mkdir()
    monkeypatch.setattr(engine_maker, "build_apart", FakeBuilds(tmp_path / "graphs", wrong_product))
    (tmp_path / "texts").write_text("Hello there.", encoding="utf-8")
    pair = [golden.folder / name for name in (golden.lm_names[0], "audio_tokenizer")]
    made = tmp_path / "out" / "report"
    command = ["validate", bundle.folder, "--against", pair[0], "--audio-tokenizer", pair[1]]
    command += ["--text-tokenizer", golden.folder / "text_tokenizer", "--max-new", 2]
    command += ["--text", tmp_path / "texts", "--backend", "trt-rtx", "--bisect", "-o", made]
    assert main([str(word) for word in command]) == 5
    out = capsys.readouterr()
    assert f"between {BEFORE} and {AFTER}" in out.out and "was born there" in out.out
    assert ANOTHER in out.out
    assert "bisecting backbone, prefill: building engine 1, about" in out.err
    data = json.loads((made / "report.json").read_text(encoding="utf-8"))
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert not list(problems(data, schema, schema))
    bisected = data["candidates"][0]["bisected"]
    (finding,) = bisected["findings"]
    assert finding["weights"] == [LAYER.format(1, f"{name}.weight") for name in WEIGHTS]
    page = (made / "report.html").read_text(encoding="utf-8")
    assert bisected["engines"] and all(engine["tap"] in page for engine in bisected["engines"])
    assert [path.name for path in made.parent.iterdir()] == ["report"]


def test_what_cannot_be_bisected_is_refused_at_once(
    golden: Golden,
    tmp_path: Path,
    own: Recording,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = exported(golden, golden.lm_names[0])
    own.save(tmp_path / "rec")
    against = ["--against", str(golden.folder / golden.lm_names[0]), "--bisect"]
    against += ["--audio-tokenizer", str(golden.folder / "audio_tokenizer")]
    against += ["--backend", "trt-rtx", "-o", str(tmp_path / "report")]

    def refused(code: int, *words: str | Path) -> str:
        assert main(["validate", *map(str, words), *against]) == code
        return capsys.readouterr().err

    def no_gpu() -> None:
        raise EnvironmentProblem("CUDA cudaSetDevice: no device.")

    monkeypatch.setattr(bisecting, "CudaDevice", no_gpu)
    assert "give the recording here, with --bisect-bundle" in refused(3, bundle)
    assert "name the bundle: --bisect-bundle DIR" in refused(2, tmp_path / "rec")
    assert "give that alone" in refused(2, bundle, "--bisect-bundle", bundle)
    said = refused(2, tmp_path / "rec", "--bisect-bundle", bundle)  # it is the reference's
    assert "for what TensorRT computed" in said
    assert not (tmp_path / "report").exists()
