"""Bundles to build engines from, and a backend on a fake GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mimo_edge.engines.build import identity_of
from mimo_edge.engines.profiles import Limits, profiles
from mimo_edge.engines.recipe import for_bundle
from mimo_edge.engines.target import Target
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.backends.trt import TrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import MANIFEST, EngineManifest, folder_of
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.manifest import PIECES

from tests.bundles import exported
from tests.engines.fake_cuda import FakeCuda
from tests.engines.fake_tensorrt import FakeClassicTensorRT, FakeTensorRT, fake_plan
from tests.golden import Golden

LIMITS = Limits(max_seq=320, max_batch=2)
CAPABILITIES = ("8.6", "8.9")
MODULES: dict[str, type[FakeTensorRT]] = {"trt-rtx": FakeTensorRT, "trt": FakeClassicTensorRT}


@pytest.fixture(scope="session")
def bundle_copy(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """A bundle that a test may put engines into; the weights are linked, not copied."""

    def copy(lm: str, dtype: str = "fp32") -> Bundle:
        source, folder = exported(golden, lm, dtype), tmp_path_factory.mktemp(f"{lm}-{dtype}")
        for path in source.iterdir():
            if path.is_file():
                (folder / path.name).hardlink_to(path)
        return Bundle.open(folder)

    return copy


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
        **plan: Any,
    ) -> tuple[Bundle, Path]:
        bundle = bundle or bundle_copy(lm)
        target = Target(product, CAPABILITIES)
        identity = identity_of(bundle, for_bundle(bundle, None), target, MODULES[product], limits)
        folder, graphs = folder_of(bundle, identity), tmp_path_factory.mktemp("lowered")
        folder.mkdir(parents=True)
        plans = {}
        for piece in PIECES:
            ranges = profiles(bundle, piece, limits)
            content = fake_plan(bundle.path(piece), ranges, limits.max_seq, graphs, **plan)
            (folder / f"{piece}.plan").write_bytes(content)
            plans[piece] = hash_file(folder / f"{piece}.plan")
        manifest = EngineManifest(identity, plans, "", dict.fromkeys(PIECES, 0.0))
        write_text(folder / MANIFEST, manifest.to_json())
        return bundle, folder

    return make


def open_on(bundle: Bundle, cuda: FakeCuda, product: str = "trt-rtx") -> TrtBackend:
    """A TensorRT backend on a fake GPU; every line of it and of `backends.cuda` is the real one."""
    return TrtBackend(bundle, product, MODULES[product](cuda), CudaDevice(bindings=cuda))


@pytest.fixture(scope="session")
def open_fake(
    fake_engines: Callable[..., tuple[Bundle, Path]],
) -> Callable[..., tuple[TrtBackend, FakeCuda]]:
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
