"""On a GPU (`pytest -m gpu`): TensorRT on the goldens. ONNX Runtime CUDA is in tests/gpu."""

from collections.abc import Callable

import numpy as np
import pytest
from mimo_edge.engines.build import build_engines, identity_of
from mimo_edge.engines.bundle_recipe import for_bundle
from mimo_edge.engines.profiles import Limits
from mimo_edge.engines.target import RTX_CAPABILITIES, Target
from mimo_edge.parity import tolerances
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.backends.base import Backend
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine_folders import home_of
from mimo_edge.runtime.chat.presets import Sampling

from tests import check
from tests.golden import Golden
from tests.grids import check_greedy

pytestmark = pytest.mark.gpu
GREEDY = Sampling(0.0)


@pytest.fixture(scope="module", params=["trt-rtx", "trt"])
def backend(
    request: pytest.FixtureRequest, golden: Golden, bundle_copy: Callable[..., Bundle]
) -> Backend:
    bundle = bundle_copy(golden.lm_names[0])
    device = CudaDevice()
    capability = device.capability()
    device.close()
    target = Target(request.param, (capability,) if request.param == "trt-rtx" else ())
    if request.param == "trt-rtx" and capability not in RTX_CAPABILITIES:
        pytest.skip(f"TensorRT for RTX does not build for {capability}")
    trt = pytest.importorskip(target.module)
    limits, recipe = Limits(max_seq=512, max_batch=2), for_bundle(bundle, None)
    target = target.on_gpu(capability)
    identity = identity_of(bundle, recipe, target, trt, limits)
    build_engines(bundle, identity, target, trt, limits, home_of(bundle))
    return open_backend(request.param, bundle)


def test_generate(golden: Golden, backend: Backend) -> None:
    lm = golden.lm_names[0]
    for case in golden.generate_cases(lm):
        check_greedy(golden, backend, lm, case)


def test_audio(golden: Golden, backend: Backend) -> None:
    arrays, codes = golden.npz("pipeline.npz"), golden.npz("decoder.npz")["long.codes"]
    encoded = codec.encode(backend, arrays["wav24k"])
    check.equal(encoded.T.flatten(), arrays["audio_tokenized"], "audio_tokenized")
    wav = codec.decode(backend, codes)
    expected = golden.npz("decoder.npz")["long.wav"][0, 0]
    # another device sums in another order; the CPU limit is for the CPU
    assert np.abs(wav - expected).max() <= 10 * tolerances.AUDIO.absolute
