"""The TensorRT backend on a fake GPU: the real loop, the real backend, the goldens' numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.parity import tolerances
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import (
    InputError,
)
from mimo_edge.runtime.bundle.manifest import AUDIO_SECONDS
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.generation.loop import Loop, generate
from mimo_edge.runtime.generation.request import Request, Step
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio

from tests import check
from tests.engines.conftest import Open, open_on
from tests.engines.fake_cuda import FakeCuda
from tests.golden import Golden
from tests.grids import check_greedy, forward_of, grid_of

PRODUCTS = ("trt-rtx", "trt")
HOT = Sampling(0.9, top_k=20, top_p=0.95)


@pytest.mark.parametrize("product", PRODUCTS)
def test_generate(
    golden: Golden, open_fake: Open, lm_name: str, generate_case: str, product: str
) -> None:
    """Ids equal the goldens, and at the end nothing is held: no memory, graph, context, engine."""
    backend, cuda = open_fake(lm_name, product)
    with backend:
        check_greedy(golden, backend, lm_name, generate_case)
        assert "launch" in cuda.names(), "no step ran as a graph"
    assert not cuda.leaks()
    assert backend._trt.alive() == 0, "TensorRT objects outlive the backend"


def test_arrays_of_other_dtypes(golden: Golden, open_fake: Open) -> None:
    """int32 is cast, not read as int64; what would lose something is refused by name."""
    lm = golden.lm_names[0]
    backend, _ = open_fake(lm)
    with backend:
        model = backend.bundle.model
        text, codes = forward_of(golden, lm, backend)
        small, small_codes = text.astype(np.int32), codes.astype(np.int16)
        one = np.array([True])
        states = backend.new_rows(1)
        expected = states.extend(0, text[:5], codes[:5]), states.step(0, text[5:6], codes[5:6], one)
        states.truncate(0, 0)
        got = (
            states.extend(0, small[:5], small_codes[:5]),
            states.step(0, small[5:6], small_codes[5:6], one),
        )
        for wanted, found in zip(expected, got, strict=True):
            check.equal(found, wanted, "int32")
        with pytest.raises(InputError, match="codes is float64, and must be int64"):
            states.step(0, text[5:6], codes[5:6].astype(np.float64), one)
        with pytest.raises(InputError, match="2 rows from row 0 on, and there is 1"):
            states.step(0, text[5:7], codes[5:6], one)
        with pytest.raises(InputError, match="text_ids is float32, and must be int64"):
            states.extend(0, text[:5].astype(np.float32), codes[:5])
        settings = np.ones(1), np.zeros(1, np.int64), np.ones(1, np.float32)
        uniforms = np.zeros((1, model.group_size, model.n_q), np.float32)
        with pytest.raises(InputError, match="temperature is float64, and must be float32"):
            states.draw_codes(0, uniforms, *settings)
        spoken = golden.npz("decoder.npz")["long.codes"]
        wav = codec.decode(backend, spoken)
        check.equal(codec.decode(backend, spoken.astype(np.int32)), wav, "int32 codes")
        with pytest.raises(InputError, match="wav is float64, and must be float32"):
            backend.mel(wav.astype(np.float64))


@pytest.mark.parametrize("product", PRODUCTS)
def test_rows_equal_rows_alone(golden: Golden, open_fake: Open, product: str) -> None:
    """Two rows of unequal length, sampled, against each alone."""
    lm = golden.lm_names[0]
    arrays = golden.npz(f"{lm}.generate.npz")
    prompts = [arrays[f"{case}.ids"] for case in golden.generate_cases(lm)[:2]]
    requests = [Request(p, HOT, HOT, max_new=6 + i, seed=i) for i, p in enumerate(prompts)]
    backend, _ = open_fake(lm, product)
    with backend:
        alone = [list(generate(backend, r, golden.empty_id)) for r in requests]
        loop = Loop(backend, golden.empty_id, slots=2)
        request_ids = [loop.add(request) for request in requests]
        together: dict[int, list[Step]] = {request_id: [] for request_id in request_ids}
        while steps := loop.step():
            for step in steps:
                together[step.request_id].append(step)
        for request_id, steps in zip(request_ids, alone, strict=True):
            check.equal(grid_of(backend, together[request_id]), grid_of(backend, steps), "row")


def test_audio(golden: Golden, open_fake: Open) -> None:
    arrays, codes = golden.npz("pipeline.npz"), golden.npz("decoder.npz")
    backend, _ = open_fake(golden.lm_names[0])
    with backend:
        encoded = codec.encode(backend, arrays["wav24k"])
        check.equal(encoded.T.flatten(), arrays["audio_tokenized"], "audio_tokenized")
        wav = codec.decode(backend, codes["long.codes"])
        check.close(wav[None, None], codes["long.wav"], tolerances.AUDIO, "long.wav")


def test_audio_of_more_than_a_segment(golden: Golden, open_fake: Open) -> None:
    """What the codec cuts long audio into fits the profiles: the fake refuses what does not."""
    backend, _ = open_fake(golden.lm_names[0])
    with backend:
        model = backend.bundle.model
        seconds = AUDIO_SECONDS + 1
        wav = np.random.default_rng(0).normal(0, 0.1, seconds * model.sampling_rate)
        codes = codec.encode(backend, wav.astype(np.float32))
        assert codes.shape[1] >= seconds * 25
        assert len(codec.decode(backend, codes)) == codes.shape[1] * model.samples_per_frame


def test_a_task(golden: Golden, open_fake: Open) -> None:
    backend, _ = open_fake(golden.lm_names[0])
    with MimoAudio(backend) as model:
        generation = model.tts("Hello there.", options=Options(max_new=20, seed=1))
        result = generation.result()
        assert result.wav is not None and result.timings.patches <= 20


def test_order_of_calls(golden: Golden, open_fake: Open) -> None:
    """A step uploads three arrays, launches one graph and brings back the scores; nothing else."""
    lm = golden.lm_names[0]
    backend, cuda = open_fake(lm)
    with backend:
        model = backend.bundle.model
        text, codes = forward_of(golden, lm, backend)
        states, one = backend.new_rows(1), np.array([True])
        states.extend(0, text[:4], codes[:4])
        states.step(0, text[4:5], codes[4:5], one)  # plain, then captured
        held = backend.device.allocated
        cuda.calls.clear()
        states.step(0, text[5:6], codes[5:6], one)
        assert cuda.names() == ["upload"] * 3 + ["launch", "download", "synchronize"]
        assert cuda.calls[3] == ("launch", 2), "patch encoder and backbone in one graph"
        assert cuda.calls[4][2] == 4 * model.vocab_size

        settings = np.ones(1, np.float32), np.zeros(1, np.int64), np.ones(1, np.float32)
        uniforms = np.zeros((1, model.group_size, model.n_q), np.float32)
        states.draw_codes(0, uniforms, *settings)
        cuda.calls.clear()
        states.draw_codes(0, uniforms, *settings)
        assert cuda.names() == ["upload"] * 4 + ["launch", "download", "synchronize"]
        copies = 4  # in: sub-step, uniforms; out: codes; and the next x
        assert cuda.calls[4] == ("launch", (1 + copies) * model.sub_steps), "a patch in one graph"
        assert cuda.calls[5][2] == 8 * model.sub_steps * model.n_q
        assert backend.device.allocated == held, "a step allocates"


def test_a_patch_is_one_graph_of_all_sub_steps(golden: Golden, open_fake: Open) -> None:
    """The patch decoder runs as often as there are sub-steps, in one launch, and draws again what
    it drew. What overflowed leaves nothing behind."""
    lm = golden.lm_names[0]
    backend, cuda = open_fake(lm)
    with backend:
        model = backend.bundle.model
        text, codes = forward_of(golden, lm, backend)
        states = backend.new_rows(2)
        for row in range(2):
            states.extend(row, text[: 4 + row], codes[: 4 + row])
        memory = states._memory
        decoder = memory._contexts["patch_decoder"]._context
        uniforms = np.random.default_rng(0).random((2, model.group_size, model.n_q), np.float32)
        settings = np.full(2, 0.9, np.float32), np.zeros(2, np.int64), np.ones(2, np.float32)
        first = states.draw_codes(0, uniforms, *settings)  # plain, then captured
        runs = decoder.runs
        assert runs == model.sub_steps
        cuda.calls.clear()
        check.equal(states.draw_codes(0, uniforms, *settings), first, "as a graph")
        assert cuda.names().count("launch") == 1 and decoder.runs == 2 * runs
        newest = cuda.view(memory._address["local_hidden"], 2 * memory._row_bytes["local_hidden"])
        good = newest.copy()
        newest.view(np.float32)[-1] = np.nan  # of the second row
        broken = states.draw_codes(0, uniforms, *settings)
        assert (broken[1] == -1).all()
        check.equal(broken[0], first[0], "the other row")
        newest[:] = good
        check.equal(states.draw_codes(0, uniforms, *settings), first, "after an overflow")


def test_without_graphs(golden: Golden, fake_engines: Callable[..., tuple[Bundle, Path]]) -> None:
    """An engine that TensorRT would not capture runs plainly, to the same ids."""
    lm, cuda = golden.lm_names[0], FakeCuda()
    with open_on(fake_engines(lm, capturable=False)[0], cuda) as backend:
        check_greedy(golden, backend, lm, golden.generate_cases(lm)[0])
        assert "launch" not in cuda.names()
