"""The backend under test: ONNX Runtime CUDA, or with `--cuda-device cpu` the same on the CPU.

`--cuda-bundle` names an exported bundle of the first golden model, for machines without the
exporter. Nothing here or in the tests needs torch, onnx or TensorRT.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle

from tests.golden import Golden


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cuda-bundle", help="bundle of the first golden model (default: export it)")
    parser.addoption("--cuda-device", default="cuda", help="cuda or cpu")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    return pytestconfig.getoption("--cuda-device", default="cuda")


@pytest.fixture(scope="session")
def bundle(pytestconfig: pytest.Config, golden: Golden) -> Bundle:
    given = pytestconfig.getoption("--cuda-bundle", default=None)
    if given is not None:
        return Bundle.open(Path(given))
    from tests.bundles import exported

    return Bundle.open(exported(golden, golden.lm_names[0]))


@pytest.fixture(scope="session")
def backend(bundle: Bundle, device: str) -> Iterator[OrtBackend]:
    with OrtBackend(bundle, device) as opened:
        yield opened
