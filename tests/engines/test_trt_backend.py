"""The TensorRT backend on a fake GPU: the real loop, the real backend, the goldens' numbers."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mimo_edge.parity import tolerances
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.backends.trt import TrtBackend
from mimo_edge.runtime.backends.trt_context import Context
from mimo_edge.runtime.backends.trt_rows import run_length
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import PREFILL_LENGTHS
from mimo_edge.runtime.bundle.errors import (
    ContextError,
    EngineError,
    InputError,
    ResourceError,
)
from mimo_edge.runtime.bundle.manifest import AUDIO_SECONDS
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.generation.loop import Loop, generate
from mimo_edge.runtime.generation.request import Request, Step, join_steps, split_grid
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio

from tests import check
from tests.engines.conftest import open_on
from tests.engines.fake_cuda import FakeCuda
from tests.golden import Golden

Open = Callable[..., tuple[TrtBackend, FakeCuda]]
GREEDY, HOT = Sampling(0.0), Sampling(0.9, top_k=20, top_p=0.95)
PRODUCTS = ("trt-rtx", "trt")


def grid_of(backend: TrtBackend, steps: list[Step]) -> np.ndarray:
    model = backend.bundle.model
    return join_steps(steps, model.empty_codes, model.group_size)


def names(cuda: FakeCuda) -> list[str]:
    return [call[0] for call in cuda.calls]


@pytest.mark.parametrize("product", PRODUCTS)
def test_generate(
    golden: Golden, open_fake: Open, lm_name: str, generate_case: str, product: str
) -> None:
    """Ids equal the goldens, and at the end nothing is held: no memory, graph, context, engine."""
    arrays = golden.npz(f"{lm_name}.generate.npz")
    prompt = arrays[f"{generate_case}.ids"]
    expected = arrays[f"{generate_case}.free.out"][:, prompt.shape[1] :]
    backend, cuda = open_fake(lm_name, product)
    with backend:
        group = backend.bundle.model.group_size
        request = Request(prompt, GREEDY, GREEDY, max_new=expected.shape[1] // group)
        steps = list(generate(backend, request, golden.empty_id))
        check.equal(grid_of(backend, steps), expected, "free.out")
        assert "launch" in names(cuda), "no step ran as a graph"
    assert not cuda.leaks()
    assert backend._trt.alive() == 0, "TensorRT objects outlive the backend"


@pytest.mark.parametrize("product", PRODUCTS)
def test_chunked_prefill_of_unequal_rows(
    golden: Golden, open_fake: Open, lm_name: str, product: str
) -> None:
    """Prompts in chunks of 7, in two rows that begin and end at unequal positions; then both step
    together. Both rows are held against the goldens at every position that these have."""
    arrays = golden.npz(f"{lm_name}.forward.npz")
    backend, _ = open_fake(lm_name, product)
    with backend:
        text, codes = split_grid(arrays["ids"], backend.bundle.model.group_size)
        patches = int(arrays["prefill_groups"])
        states = backend.new_rows(2)
        states._memory.chunk = 7
        behind = 2  # the first row's steps are the second's prompt
        first = states.extend(0, text[: patches - behind], codes[: patches - behind])
        logits = states.extend(1, text[:patches], codes[:patches])
        check.close(logits[None, None], arrays["prefill.text_logits"], tolerances.LM, "prefill")
        assert np.abs(first - logits).max() > tolerances.LM.absolute, "rows are told apart"
        expected = {patches: arrays["prefill.text_logits"][0]} | {
            patches + 1 + step: arrays[f"step{step}.text_logits"][0]
            for step in range(len(text) - patches)
        }
        for step in range(len(text) - patches):
            here = np.array([patches - behind + step, patches + step])
            logits = states.step(0, text[here], codes[here], np.array([True, True]))
            for row, length in enumerate(states.lengths):
                if int(length) in expected:
                    what = f"row {row} at {length}"
                    wanted = expected[int(length)]
                    check.close(logits[row : row + 1], wanted, tolerances.LM, what)
        assert states.lengths[0] >= patches, "the first row never reaches a golden position"


def test_runs_of_a_prefill() -> None:
    """Few lengths, the shortest that holds what is left, and never beyond the end of the cache."""
    lengths = (1, 16, 64, 256)
    assert [run_length(n, 1000, lengths) for n in (1, 2, 16, 17, 70, 300)] == [
        *(1, 16, 16, 64, 256, 256)
    ]
    for room in range(1, 330):
        for count in (1, 2, 15, 16, 17, room):
            left, here, runs = min(count, room), room, 0
            while left > 0:
                length = run_length(left, here, lengths)
                assert length in lengths and length <= here
                left, here, runs = left - length, here - length, runs + 1
            assert runs <= 1 + 3 + 3 + 15


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_padded_prefill(golden: Golden, open_fake: Open, lm_name: str, product: str) -> None:
    """Whatever is behind the last position of a run, all that follows is the golden's: what a run
    of 16 wrote beyond a prompt, the next steps overwrite. The shapes are of the few lengths."""
    arrays = golden.npz(f"{lm_name}.forward.npz")
    backend, _ = open_fake(lm_name, product)
    with backend:
        text, codes = split_grid(arrays["ids"], backend.bundle.model.group_size)
        patches = int(arrays["prefill_groups"])
        states = backend.new_rows(2)
        states.extend(0, text[:1], codes[:1])  # the other row is as short as can be
        seen = []
        bind = Context.bind
        with pytest.MonkeyPatch.context() as patch:

            def spy(self: Context, name: str, address: int, shape: Any = None) -> None:
                if name == "text_ids":
                    seen.append(shape[1])
                bind(self, name, address, shape)

            patch.setattr(Context, "bind", spy)
            logits = states.extend(1, text[:patches], codes[:patches])
        assert seen and set(seen) <= set(PREFILL_LENGTHS) and sum(seen) > patches
        check.close(logits[None, None], arrays["prefill.text_logits"], tolerances.LM, "prefill")
        for step in range(len(text) - patches):
            here = np.array([0, patches + step])
            logits = states.step(0, text[here], codes[here], np.array([False, True]))
            wanted = arrays[f"step{step}.text_logits"][0]
            check.close(logits[1:], wanted, tolerances.LM, f"step {step}")


def test_a_prompt_that_fills_the_cache(golden: Golden, open_fake: Open) -> None:
    """At the end of the cache a run must not be longer than the room: the fake would see a write
    behind the row. In chunks and at once the same scores come out."""
    lm = golden.lm_names[0]
    backend, _ = open_fake(lm)
    with backend:
        model = backend.bundle.model
        text, codes = split_grid(golden.npz(f"{lm}.forward.npz")["ids"], model.group_size)
        states = backend.new_rows(1)
        many = np.resize(np.arange(len(text)), states.capacity - 1)
        whole = states.extend(0, text[many], codes[many])
        states._memory.chunk = 100
        assert states.capacity - 300 < 64, "the last chunk has no room for the length above it"
        states.truncate(0, 0)
        parts = states.extend(0, text[many], codes[many])
        check.close(parts[None], whole[None], tolerances.LM, "in chunks")
        states.step(0, text[:1], codes[:1], np.array([True]))
        assert states.lengths[0] == states.capacity


def test_arrays_of_other_dtypes(golden: Golden, open_fake: Open) -> None:
    """int32 is cast, not read as int64; what would lose something is refused by name."""
    lm = golden.lm_names[0]
    backend, _ = open_fake(lm)
    with backend:
        model = backend.bundle.model
        text, codes = split_grid(golden.npz(f"{lm}.forward.npz")["ids"], model.group_size)
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


def test_answers_share_their_buffers(golden: Golden, open_fake: Open) -> None:
    """Answer after answer takes no more memory, and what an old one left behind changes nothing."""
    lm = golden.lm_names[0]
    arrays = golden.npz(f"{lm}.generate.npz")
    cases = golden.generate_cases(lm)[:2]
    requests = [Request(arrays[f"{c}.ids"], HOT, HOT, max_new=5, seed=7) for c in cases]
    backend, cuda = open_fake(lm)
    with backend:
        first = grid_of(backend, list(generate(backend, requests[0], golden.empty_id)))
        list(generate(backend, requests[1], golden.empty_id))
        gc.collect()
        for memory in backend._idle:
            for name, address in memory._address.items():
                if name.startswith("cache_"):
                    left = cuda.view(address, memory._row_bytes[name])
                    left.view(np.float32)[:] = np.nan
        held, graphs = backend.device.allocated, len(cuda.executables)
        cuda.calls.clear()
        list(generate(backend, requests[1], golden.empty_id))
        again = grid_of(backend, list(generate(backend, requests[0], golden.empty_id)))
        check.equal(again, first, "the same request, in used buffers")
        assert "malloc" not in names(cuda) and "instantiate" not in names(cuda)
        assert backend.device.allocated == held and len(cuda.executables) == graphs
        # rows that are in use are nobody else's
        one, two = backend.new_rows(1), backend.new_rows(1)
        assert one._memory is not two._memory
        # another number of rows: idle buffers make room, used ones stay
        del two
        backend.new_rows(2)
        assert one._memory in backend._rows and "free" in names(cuda)
    assert not cuda.leaks()


def test_rows_outlive_the_backend_harmlessly(golden: Golden, open_fake: Open) -> None:
    backend, cuda = open_fake(golden.lm_names[0])
    with backend:
        states = backend.new_rows(1)
    assert not cuda.leaks() and backend._trt.alive() == 0
    del states
    gc.collect()


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


def test_engines_of_a_quantised_bundle(
    golden: Golden,
    quantised: Callable[[str, str], Bundle],
    fake_engines: Callable[..., tuple[Bundle, Path]],
) -> None:
    """engine.json names the forms of their weights; they open, and say what ONNX Runtime says."""
    bundle, _ = fake_engines(golden.lm_names[0], bundle=quantised("int4-edge", "fp32"))
    text, codes = split_grid(
        golden.npz(f"{golden.lm_names[0]}.forward.npz")["ids"], bundle.model.group_size
    )
    with open_on(bundle, FakeCuda()) as backend, OrtBackend(bundle, threads=1) as truth:
        logits = [side.new_rows(1).extend(0, text[:5], codes[:5]) for side in (backend, truth)]
    check.close(logits[0][None, None], logits[1][None, None], tolerances.LM, "quantised")


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
        text, codes = split_grid(golden.npz(f"{lm}.forward.npz")["ids"], model.group_size)
        states, one = backend.new_rows(1), np.array([True])
        states.extend(0, text[:4], codes[:4])
        states.step(0, text[4:5], codes[4:5], one)  # plain, then captured
        held = backend.device.allocated
        cuda.calls.clear()
        states.step(0, text[5:6], codes[5:6], one)
        assert names(cuda) == ["upload"] * 3 + ["launch", "download", "synchronize"]
        assert cuda.calls[3] == ("launch", 2), "patch encoder and backbone in one graph"
        assert cuda.calls[4][2] == 4 * model.vocab_size

        settings = np.ones(1, np.float32), np.zeros(1, np.int64), np.ones(1, np.float32)
        uniforms = np.zeros((1, model.group_size, model.n_q), np.float32)
        states.draw_codes(0, uniforms, *settings)
        cuda.calls.clear()
        states.draw_codes(0, uniforms, *settings)
        assert names(cuda) == ["upload"] * 4 + ["launch", "download", "synchronize"]
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
        text, codes = split_grid(golden.npz(f"{lm}.forward.npz")["ids"], model.group_size)
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
        assert names(cuda).count("launch") == 1 and decoder.runs == 2 * runs
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
    lm = golden.lm_names[0]
    arrays, case = golden.npz(f"{lm}.generate.npz"), golden.generate_cases(lm)[0]
    prompt = arrays[f"{case}.ids"]
    expected = arrays[f"{case}.free.out"][:, prompt.shape[1] :]
    cuda = FakeCuda()
    with open_on(fake_engines(lm, capturable=False)[0], cuda) as backend:
        count = expected.shape[1] // backend.bundle.model.group_size
        request = Request(prompt, GREEDY, GREEDY, max_new=count)
        steps = list(generate(backend, request, golden.empty_id))
        check.equal(grid_of(backend, steps), expected, "free.out")
        assert "launch" not in names(cuda)


def test_limits(golden: Golden, open_fake: Open) -> None:
    lm = golden.lm_names[0]
    backend, _ = open_fake(lm)
    with backend:
        with pytest.raises(InputError, match="--max-batch 3"):
            backend.new_rows(3)
        states = backend.new_rows(1)
        assert states.capacity < PREFILL_LENGTHS[-1], "a full prompt is one chunk"
        group = backend.bundle.model.group_size
        text, codes = split_grid(golden.npz(f"{lm}.forward.npz")["ids"], group)
        many = np.resize(np.arange(len(text)), states.capacity + 1)
        with pytest.raises(ContextError, match="--max-seq"):
            states.extend(0, text[many], codes[many])
        states.extend(0, text[many[:-1]], codes[many[:-1]])
        with pytest.raises(ContextError, match="positions"):
            states.step(0, text[:1], codes[:1], np.array([True]))


def test_out_of_memory_before_work_starts(golden: Golden, open_fake: Open) -> None:
    """Weights, then scratch, then rows: each is refused as a whole, and what was taken goes."""
    lm = golden.lm_names[0]
    with pytest.raises(ResourceError, match="engines need"):
        open_fake(lm, memory_bytes=10)
    backend, cuda = open_fake(lm)
    with backend:
        needed = backend.device.allocated
        backend.new_rows(2)
        rows = backend.device.allocated - needed
    backend, cuda = open_fake(lm, memory_bytes=needed + rows - 1)
    with backend:
        with pytest.raises(ResourceError, match=r"2 rows of 320 patches need .* MB free"):
            backend.new_rows(2)
        assert backend.device.allocated == needed, "nothing was taken before the refusal"
        backend.new_rows(1)
    assert not cuda.leaks()
    backend, cuda = open_fake(lm, memory_bytes=needed + rows)  # the account is exact
    with backend:
        backend.new_rows(2)


def test_a_row_that_would_not_be_aligned(
    golden: Golden, open_fake: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second row of a cache begins where the first ends; kernels may want that aligned."""
    backend, cuda = open_fake(golden.lm_names[0])
    with backend:
        model = backend.bundle.model
        row = model.kv_heads * backend.identity.max_seq * model.head_dim * 4
        monkeypatch.setattr("mimo_edge.runtime.backends.trt_rows.ALIGNMENT", 2 * row)
        backend.new_rows(1)
        with pytest.raises(EngineError, match=f"cache_keys_0 has {row} bytes.*--max-seq"):
            backend.new_rows(2)
    assert not cuda.leaks()
