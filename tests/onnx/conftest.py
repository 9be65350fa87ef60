from collections.abc import Callable
from functools import cache

import pytest
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle

from tests.bundles import exported
from tests.golden import Golden


@pytest.fixture(scope="session")
def open_backend(golden: Golden) -> Callable[[str], OrtBackend]:
    """A backend on the fp32 bundle of a language model of the folder."""
    return cache(lambda lm: OrtBackend(Bundle.open(exported(golden, lm))))


@pytest.fixture(scope="session")
def backend(golden: Golden, open_backend: Callable[[str], OrtBackend]) -> OrtBackend:
    return open_backend(golden.lm_names[0])
