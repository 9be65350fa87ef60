"""The TensorRT backend on a fake GPU: the real loop, the real backend, the goldens' numbers."""

import gc
from collections.abc import Callable

import numpy as np
import pytest

from runtime import codec
from runtime.errors import ContextError, InputError, ResourceError
from runtime.loop import Loop, Request, Step, generate, join_steps, split_grid
from runtime.presets import Sampling
from runtime.tasks import MimoAudio, Options
from runtime.trt_backend import TrtBackend
from scripts import tolerances
from tests import check
from tests.engines.fake_gpu import FakeDevice
from tests.golden import Golden

Open = Callable[..., tuple[TrtBackend, FakeDevice]]
GREEDY = Sampling(0.0)


def grid_of(backend: TrtBackend, steps: list[Step]) -> np.ndarray:
    model = backend.bundle.model
    return join_steps(steps, model.empty_codes, model.group_size)


def test_generate(golden: Golden, open_fake: Open, lm_name: str, generate_case: str) -> None:
    arrays = golden.npz(f"{lm_name}.generate.npz")
    prompt = arrays[f"{generate_case}.ids"]
    expected = arrays[f"{generate_case}.free.out"][:, prompt.shape[1] :]
    backend, device = open_fake(lm_name)
    with backend:
        group = backend.bundle.model.group_size
        request = Request(prompt, GREEDY, GREEDY, max_new=expected.shape[1] // group)
        steps = list(generate(backend, request, golden.empty_id))
        check.equal(grid_of(backend, steps), expected, "free.out")
    assert device.closed and not device.blocks


def test_chunked_prefill(
    golden: Golden, open_fake: Open, lm_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt in chunks of 7, in the second row, beside a row that holds something else."""
    arrays = golden.npz(f"{lm_name}.forward.npz")
    backend, _ = open_fake(lm_name)
    with backend:
        text, codes = split_grid(arrays["ids"], backend.bundle.model.group_size)
        patches = int(arrays["prefill_groups"])
        states = backend.new_rows(2)
        monkeypatch.setattr(states, "_chunk", 7)
        states.prefill(0, text[:5], codes[:5])
        logits = states.prefill(1, text[:patches], codes[:patches])
        check.close(logits[None, None], arrays["prefill.text_logits"], tolerances.LM, "prefill")
        for step in range(len(text) - patches):
            here = np.array([5 + step, patches + step])
            logits = states.step(text[here], codes[here], np.array([True, True]))
            expected = arrays[f"step{step}.text_logits"]
            check.close(logits[1:, None], expected, tolerances.LM, f"step{step}")


def test_rows_equal_rows_alone(golden: Golden, open_fake: Open) -> None:
    """Two rows of unequal length, sampled, against each alone."""
    lm = golden.lm_names[0]
    arrays, hot = golden.npz(f"{lm}.generate.npz"), Sampling(0.9, top_k=20, top_p=0.95)
    prompts = [arrays[f"{case}.ids"] for case in golden.generate_cases(lm)[:2]]
    requests = [Request(p, hot, hot, max_new=6 + i, seed=i) for i, p in enumerate(prompts)]
    backend, _ = open_fake(lm)
    with backend:
        alone = [list(generate(backend, r, golden.empty_id)) for r in requests]
        loop = Loop(backend, golden.empty_id, rows=2)
        tickets = [loop.add(request) for request in requests]
        together: dict[int, list[Step]] = {ticket: [] for ticket in tickets}
        while steps := loop.step():
            for step in steps:
                together[step.row].append(step)
        for ticket, steps in zip(tickets, alone, strict=True):
            check.equal(grid_of(backend, together[ticket]), grid_of(backend, steps), "row")


def test_audio(golden: Golden, open_fake: Open) -> None:
    arrays, codes = golden.npz("pipeline.npz"), golden.npz("decoder.npz")
    backend, _ = open_fake(golden.lm_names[0])
    with backend:
        encoded = codec.encode(backend, arrays["wav24k"])
        check.equal(encoded.T.flatten(), arrays["audio_tokenized"], "audio_tokenized")
        wav = codec.decode(backend, codes["long.codes"])
        check.close(wav[None, None], codes["long.wav"], tolerances.AUDIO, "long.wav")


def test_a_task(golden: Golden, open_fake: Open) -> None:
    backend, _ = open_fake(golden.lm_names[0])
    with MimoAudio(backend) as model:
        talk = model.tts("Hello there.", options=Options(max_new=20, seed=1))
        result = talk.result()
        assert result.wav is not None and result.timings.patches <= 20


def test_order_of_calls(golden: Golden, open_fake: Open) -> None:
    """A step uploads three arrays, launches one graph and brings back the scores; nothing else."""
    lm = golden.lm_names[0]
    backend, device = open_fake(lm)
    with backend:
        model = backend.bundle.model
        text, codes = split_grid(golden.npz(f"{lm}.forward.npz")["ids"], model.group_size)
        states, one = backend.new_rows(1), np.array([True])
        states.prefill(0, text[:4], codes[:4])
        states.step(text[4:5], codes[4:5], one)  # plain, then captured
        held = device.allocated
        device.calls.clear()
        states.step(text[5:6], codes[5:6], one)
        assert [call[0] for call in device.calls] == ["upload"] * 3 + ["launch", "download"]
        assert device.calls[3] == ("launch", 2)
        assert device.calls[4][2] == 4 * model.vocab_size

        settings = np.ones(1, np.float32), np.zeros(1, np.int64), np.ones(1, np.float32)
        uniforms = np.zeros((1, model.group_size, model.n_q), np.float32)
        states.draw_codes(uniforms, *settings)
        device.calls.clear()
        states.draw_codes(uniforms, *settings)
        assert [call[0] for call in device.calls] == ["upload"] * 4 + ["launch", "download"]
        assert device.allocated == held, "a step allocates"


def test_an_answer_leaves_nothing_behind(golden: Golden, open_fake: Open) -> None:
    """Memory does not grow from answer to answer, and closing twice over is no error."""
    lm = golden.lm_names[0]
    prompt = golden.npz(f"{lm}.generate.npz")[f"{golden.generate_cases(lm)[0]}.ids"]
    backend, device = open_fake(lm)
    with backend:
        held = []
        for seed in range(3):
            request = Request(prompt, GREEDY, GREEDY, max_new=3, seed=seed)
            list(generate(backend, request, golden.empty_id))
            gc.collect()
            held.append(device.allocated)
        assert held[0] == held[1] == held[2] == 0
        states = backend.new_rows(1)
    del states  # after the backend is closed


def test_limits(golden: Golden, open_fake: Open) -> None:
    lm = golden.lm_names[0]
    backend, _ = open_fake(lm)
    with backend:
        with pytest.raises(InputError, match="--max-batch 3"):
            backend.new_rows(3)
        states = backend.new_rows(1)
        group = backend.bundle.model.group_size
        text, codes = split_grid(golden.npz(f"{lm}.forward.npz")["ids"], group)
        many = np.resize(np.arange(len(text)), states.capacity + 1)
        with pytest.raises(ContextError, match="--max-seq"):
            states.prefill(0, text[many], codes[many])
        states.prefill(0, text[many[:-1]], codes[many[:-1]])
        with pytest.raises(ContextError, match="positions"):
            states.step(text[:1], codes[:1], np.array([True]))


def test_out_of_memory_before_work_starts(golden: Golden, open_fake: Open) -> None:
    with pytest.raises(ResourceError, match="weights need"):
        open_fake(golden.lm_names[0], memory_bytes=10)
    backend, device = open_fake(golden.lm_names[0], memory_bytes=200_000)
    with pytest.raises(ResourceError, match="buffers need"):
        backend.new_rows(1)
    assert not any(call[0] == "upload" for call in device.calls)
