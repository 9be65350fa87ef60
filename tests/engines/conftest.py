"""Bundles to build engines from, and a backend on a fake GPU."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import onnx
import pytest
from mimo_edge.engines import build as build_module
from mimo_edge.engines import recipe
from mimo_edge.engines.build import identity_of
from mimo_edge.engines.bundle_recipe import for_bundle
from mimo_edge.engines.profiles import Limits, profiles
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.engines.target import Target
from mimo_edge.parity.observe import Inputs, lead
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.reference_side import ReferenceSide
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.backends.trt import TrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import MANIFEST, EngineManifest, PlanSpec
from mimo_edge.runtime.bundle.engine_folders import CACHE_ONLY, Trust, home_of, name_of
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.manifest import MANIFEST as BUNDLE_MANIFEST
from mimo_edge.runtime.bundle.manifest import PIECES

from tests.bundles import exported, hollow
from tests.engines.fake_builds import Builds
from tests.engines.fake_cuda import FakeCuda
from tests.engines.fake_tensorrt import FakeClassicTensorRT, FakeTensorRT, fake_plan
from tests.engines.wild import wild
from tests.golden import Golden

LIMITS = Limits(max_seq=320, max_batch=2)
CAPABILITIES = ("8.6", "8.9")
OWN_RECIPES = {  # beside the presets
    "fp8-weights": """
        name = "fp8-weights"
        about = "E4M3 weights, arithmetic in floating point"
        [default]
        weights = { scheme = "fp8" }
        [components.text_embedding]
        weights = { scheme = "int8" }
        [components.speech_embeddings]
        weights = { scheme = "int8" }
    """,
    "int8-blocks": """
        name = "int8-blocks"
        about = "a form that TensorRT does not take, by an exception"
        [default]
        weights = { scheme = "int8" }
        [[exceptions]]
        tensors = "patch_decoder.*.mlp.*"
        weights = { scheme = "int8", block = 32 }
    """,
    "one-in-fp8": """
        name = "one-in-fp8"
        about = "a form that older GPUs do not take, by an exception"
        [default]
        weights = { scheme = "int8" }
        [[exceptions]]
        tensors = "backbone.model.layers.0.*"
        weights = { scheme = "fp8" }
    """,
}
Fault = Callable[[str, onnx.GraphProto], None]  # piece, its graph
Open = Callable[..., tuple[TrtBackend, FakeCuda]]  # what `open_fake` gives
MODULES: dict[str, type[FakeTensorRT]] = {"trt-rtx": FakeTensorRT, "trt": FakeClassicTensorRT}


@pytest.fixture(scope="session", autouse=True)
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of all tests here; the user's own is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def bundle_copy(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """A bundle of its own, weights linked. Its manifest names a graph that no other copy has, so
    that it shares no engines with them."""
    made = count()

    def copy(lm: str, dtype: str = "fp32") -> Bundle:
        source, folder = exported(golden, lm, dtype), tmp_path_factory.mktemp(f"{lm}-{dtype}")
        for path in source.iterdir():
            if path.is_file():
                (folder / path.name).hardlink_to(path)
        graph = onnx.load(folder / "mel.onnx", load_external_data=False)
        graph.doc_string = f"copy {next(made)}"
        (folder / "mel.onnx").unlink()
        onnx.save(graph, folder / "mel.onnx")
        raw = json.loads((folder / BUNDLE_MANIFEST).read_text(encoding="utf-8"))
        raw["files"]["mel.onnx"] = dataclasses.asdict(hash_file(folder / "mel.onnx"))
        (folder / BUNDLE_MANIFEST).unlink()
        write_text(folder / BUNDLE_MANIFEST, json.dumps(raw))
        return Bundle.open(folder)

    return copy


@pytest.fixture(scope="session")
def quantised(
    golden: Golden, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Bundle]:
    """The tiny bundle as a recipe leaves it, computed in a precision."""
    made: dict[tuple[str, str], Bundle] = {}

    def make(name: str, dtype: str) -> Bundle:
        source = Bundle.open(exported(golden, golden.lm_names[0], dtype))
        if name == source.manifest.recipe:
            return source
        if (name, dtype) not in made:
            folder = tmp_path_factory.mktemp("quantised")
            given = name
            if name in OWN_RECIPES:
                given = str(folder / f"{name}.toml")
                Path(given).write_text(OWN_RECIPES[name], encoding="utf-8")
            chosen = recipe.load(given)
            known = wild(source) if chosen.calibrated else None
            quantize_bundle(source, chosen, folder / "bundle", calibration=known)
            made[name, dtype] = Bundle.open(folder / "bundle")
        return made[name, dtype]

    return make


@pytest.fixture(scope="session")
def fake_engines(
    bundle_copy: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Bundle, Path]]:
    """A bundle with an engine folder whose plans run on ONNX Runtime."""

    def make(
        lm: str,
        product: str = "trt-rtx",
        limits: Limits = LIMITS,
        bundle: Bundle | None = None,
        fault: Fault = lambda *_: None,
        **plan: Any,
    ) -> tuple[Bundle, Path]:
        """`fault` changes the graphs of pieces that TensorRT is to get wrong."""
        bundle = bundle or bundle_copy(lm)
        target = Target(product, CAPABILITIES)
        identity = identity_of(bundle, for_bundle(bundle, None), target, MODULES[product], limits)
        folder, graphs = home_of(bundle) / name_of(identity), tmp_path_factory.mktemp("lowered")
        folder.mkdir(parents=True)
        plans = {}
        for piece in PIECES:
            ranges = profiles(bundle, piece, limits)
            model = onnx.load(bundle.path(piece), load_external_data=False)
            fault(piece, model.graph)
            content = fake_plan(bundle.path(piece), ranges, limits.max_seq, graphs, model, **plan)
            (folder / f"{piece}.plan").write_bytes(content)
            file = hash_file(folder / f"{piece}.plan")
            plans[piece] = PlanSpec(identity.key(piece), file, 0.0, 0)
        manifest = EngineManifest(identity, plans, "0" * 64)
        write_text(folder / MANIFEST, manifest.to_json())
        return bundle, folder

    return make


def open_on(
    bundle: Bundle, cuda: FakeCuda, product: str = "trt-rtx", trust: Trust = CACHE_ONLY
) -> TrtBackend:
    """A TensorRT backend on a fake GPU; every line of it and of `backends.cuda` is the real one."""
    return TrtBackend(bundle, product, MODULES[product](cuda), CudaDevice(bindings=cuda), trust)


@pytest.fixture(scope="session")
def open_fake(
    fake_engines: Callable[..., tuple[Bundle, Path]],
) -> Open:
    """A TensorRT backend on a fresh fake GPU."""
    made: dict[tuple[str, str], Bundle] = {}

    def open_(lm: str, product: str = "trt-rtx", **gpu: Any) -> tuple[TrtBackend, FakeCuda]:
        if (lm, product) not in made:
            made[lm, product] = fake_engines(lm, product)[0]
        cuda = FakeCuda(**gpu)
        return open_on(made[lm, product], cuda, product), cuda

    return open_


@pytest.fixture
def scratch(
    fake_engines: Callable[..., tuple[Bundle, Path]], golden: Golden
) -> tuple[Bundle, Path]:
    """A bundle with engines that the test may damage."""
    return fake_engines(golden.lm_names[0])


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A hollow one with a cache folder of its own: they are all alike, and share their engines."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return hollow(tmp_path / "bundle")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    """In the place of `engines.builder.build`."""
    stand_in = Builds()
    monkeypatch.setattr(build_module, "build", stand_in)
    return stand_in


@pytest.fixture(scope="session")
def reference(golden: Golden) -> ReferenceSide:
    lm, tokenizer = golden.folder / golden.lm_names[0], golden.folder / "audio_tokenizer"
    return ReferenceSide(lm, tokenizer, golden.folder / "text_tokenizer")


@pytest.fixture(scope="session")
def own(golden: Golden, reference: ReferenceSide) -> Recording:
    clip = golden.npz("pipeline.npz")["wav24k"]
    return lead(reference, Inputs({"clip": clip}, ["Hello there."], max_new=4))
