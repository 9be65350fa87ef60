"""Bundles to build engines from, and a backend on a fake GPU."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.build import identity_of
from engines.profiles import Limits, profiles
from engines.recipe import for_bundle
from engines.target import Target
from runtime.bundle import PIECES, Bundle, hash_file, write_text
from runtime.engine import MANIFEST, EngineManifest, folder_of
from runtime.trt_backend import TrtBackend
from tests.bundles import exported
from tests.engines.fake_gpu import FakeDevice, FakeTensorRT, fake_plan
from tests.golden import Golden

LIMITS = Limits(max_seq=320, max_batch=2)
TARGET = Target("trt-rtx", ("8.6", "8.9"))


@pytest.fixture(scope="session")
def bundle_copy(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """A bundle that a test may put engines into; the weights are linked, not copied."""

    def copy(lm: str, dtype: str = "fp32") -> Bundle:
        source, folder = exported(golden, lm, dtype), tmp_path_factory.mktemp(f"{lm}-{dtype}")
        for path in source.iterdir():
            if path.is_file():
                (folder / path.name).hardlink_to(path)
        return Bundle.open(folder, verify=False)

    return copy


@pytest.fixture(scope="session")
def fake_engines(
    bundle_copy: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Bundle, Path]]:
    """A bundle with an engine folder whose plans run on ONNX Runtime."""

    def make(lm: str) -> tuple[Bundle, Path]:
        bundle = bundle_copy(lm)
        identity = identity_of(
            bundle, for_bundle(bundle, None), TARGET, FakeTensorRT.__version__, LIMITS
        )
        folder, graphs = folder_of(bundle, identity), tmp_path_factory.mktemp("lowered")
        folder.mkdir(parents=True)
        plans = {}
        for piece in PIECES:
            ranges = profiles(bundle, piece, LIMITS)
            plan = fake_plan(bundle.path(piece), ranges, LIMITS.max_seq, graphs)
            (folder / f"{piece}.plan").write_bytes(plan)
            plans[piece] = hash_file(folder / f"{piece}.plan")
        manifest = EngineManifest(identity, plans, "", dict.fromkeys(PIECES, 0.0))
        write_text(folder / MANIFEST, manifest.to_json())
        return bundle, folder

    return make


@pytest.fixture(scope="session")
def open_fake(
    fake_engines: Callable[[str], tuple[Bundle, Path]],
) -> Callable[..., tuple[TrtBackend, FakeDevice]]:
    """A TensorRT backend on a fresh fake GPU."""
    made: dict[str, Bundle] = {}

    def open_(lm: str, **settings: object) -> tuple[TrtBackend, FakeDevice]:
        if lm not in made:
            made[lm] = fake_engines(lm)[0]
        device = dataclasses.replace(FakeDevice(), **settings)
        return TrtBackend(made[lm], "trt-rtx", FakeTensorRT(device), device), device  # type: ignore[arg-type]

    return open_


@pytest.fixture
def scratch(
    fake_engines: Callable[[str], tuple[Bundle, Path]], golden: Golden
) -> tuple[Bundle, Path]:
    """A bundle with engines that the test may damage."""
    return fake_engines(golden.lm_names[0])


def remove(folder: Path) -> None:
    shutil.rmtree(folder)
