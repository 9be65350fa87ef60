"""Levels 3 and 4: the torch-free loop against the goldens, and rows that share steps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mimo_edge.mimo_ref import generate as reference
from mimo_edge.mimo_ref.weights import load_language_model
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.errors import ContextError, InputError
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.chat.segments import Grid
from mimo_edge.runtime.generation.loop import Loop, generate
from mimo_edge.runtime.generation.request import Request, Step
from mimo_edge.runtime.generation.sampling import Noise
from mimo_edge.runtime.generation.scheduler import Scheduler

from tests import check
from tests.golden import Golden
from tests.grids import GREEDY, grid_of

Open = Callable[[str], OrtBackend]
HOT = Sampling(0.9, top_k=20, top_p=0.95)


def answer(backend: OrtBackend, golden: Golden, request: Request) -> Grid:
    steps = list(generate(backend, request, golden.empty_id))
    return np.concatenate((request.prompt, grid_of(backend, steps)), axis=1)


def test_generate(golden: Golden, open_backend: Open, lm_name: str, generate_case: str) -> None:
    backend, arrays = open_backend(lm_name), golden.npz(f"{lm_name}.generate.npz")
    prompt, group = arrays[f"{generate_case}.ids"], backend.bundle.model.group_size
    stops = tuple(arrays[f"{generate_case}.stop_tokens"].tolist())
    fewest, most = arrays[f"{generate_case}.minlen.min_max_new_groups"].tolist()

    def new(name: str) -> int:
        return (arrays[f"{generate_case}.{name}.out"].shape[1] - prompt.shape[1]) // group

    for name, limits in {
        "free": {"max_new": new("free")},
        "stopped": {"max_new": most, "stop_ids": stops},
        "minlen": {"max_new": most, "min_new": fewest, "stop_ids": stops},
        "cfgmax": {"max_new": new("cfgmax")},
    }.items():
        request = Request(prompt, GREEDY, GREEDY, **limits)
        expected = arrays[f"{generate_case}.{name}.out"]
        check.equal(answer(backend, golden, request), expected, name)


def test_rows_join_and_leave(golden: Golden, open_backend: Open, lm_name: str) -> None:
    """Requests of different lengths share steps, join late, leave early: each as if alone."""
    backend, arrays = open_backend(lm_name), golden.npz(f"{lm_name}.generate.npz")
    prompts = [arrays[f"{case}.ids"] for case in golden.generate_cases(lm_name)]
    requests = [
        Request(prompts[0], HOT, HOT, max_new=7, seed=1),
        Request(prompts[1], GREEDY, GREEDY, max_new=4, seed=2),
        Request(
            prompts[1][:, : 5 * backend.bundle.model.group_size], HOT, GREEDY, max_new=9, seed=3
        ),
        Request(prompts[0], GREEDY, HOT, max_new=5, seed=4),
    ]
    alone = [grid_of(backend, list(generate(backend, r, golden.empty_id))) for r in requests]

    loop, waiting = Loop(backend, golden.empty_id, slots=2), list(enumerate(requests))
    request_ids: dict[int, int] = {}
    seen: dict[int, list[Step]] = {index: [] for index in range(len(requests))}
    while waiting or loop.free < 2:
        if waiting and loop.free:
            index, request = waiting.pop(0)
            request_ids[loop.add(request)] = index
        for step in loop.step():
            seen[request_ids[step.request_id]].append(step)
    for index, expected in enumerate(alone):
        check.equal(grid_of(backend, seen[index]), expected, f"request {index}")


def test_a_row_leaves_early(golden: Golden, backend: OrtBackend) -> None:
    prompt = golden.npz("pipeline.npz")["dlg.ids"]
    loop = Loop(backend, golden.empty_id)
    request_id = loop.add(Request(prompt, GREEDY, GREEDY, max_new=9))
    with pytest.raises(InputError, match="busy"):
        loop.add(Request(prompt, GREEDY, GREEDY))
    loop.step()
    loop.remove(request_id)
    assert loop.free == 1 and loop.step() == []


def test_seeds(golden: Golden, backend: OrtBackend) -> None:
    prompt = golden.npz("pipeline.npz")["dlg.ids"]

    def run(seed: int) -> Grid:
        return answer(backend, golden, Request(prompt, HOT, HOT, max_new=8, seed=seed))

    assert np.array_equal(run(5), run(5))
    assert not np.array_equal(run(5), run(6))


@pytest.mark.parametrize("seed", range(3))
def test_same_uniforms_as_the_reference(
    golden: Golden, open_backend: Open, lm_name: str, seed: int
) -> None:
    """Sampled answers: text drawn in numpy and codes drawn in the graph equal the reference's."""
    backend, prompt = open_backend(lm_name), golden.npz("pipeline.npz")["dlg.ids"]
    group, n_q = backend.bundle.model.group_size, backend.bundle.model.n_q
    ours = answer(backend, golden, Request(prompt, HOT, HOT, max_new=10, seed=seed))

    model = load_language_model(golden.folder / lm_name, golden.empty_id)
    noise = Noise(seed)
    sampling = reference.Sampling(HOT.temperature, HOT.top_k, HOT.top_p)
    patches = reference.generate(
        model,
        torch.tensor(prompt),
        reference.Limits(prompt.shape[1] // group + 10),
        lambda step: torch.tensor(noise(step, 1 + group * n_q)),
        sampling,
        sampling,
    )
    theirs = torch.cat([torch.tensor(prompt), *patches], dim=1)
    check.equal(ours, theirs.numpy(), f"seed {seed}")


def test_context_is_a_limit(golden: Golden, backend: OrtBackend) -> None:
    model = backend.bundle.model
    prompt = golden.npz("pipeline.npz")["dlg.ids"]
    copies = -(-model.context * model.group_size // prompt.shape[1])
    full = np.tile(prompt, copies)[:, : model.context * model.group_size]
    with pytest.raises(ContextError, match="context"):
        Loop(backend, golden.empty_id).add(Request(full, GREEDY, GREEDY))
    # one patch of room is one patch of answer, whatever was asked for
    almost = full[:, : -model.group_size]
    steps = list(generate(backend, Request(almost, GREEDY, GREEDY, max_new=50), golden.empty_id))
    assert len(steps) == 1 and steps[0].last and not steps[0].stopped


@pytest.mark.slow
def test_three_hundred_answers_leave_memory_flat(golden: Golden, backend: OrtBackend) -> None:
    """Through one scheduler, with prompts that share beginnings and some that do not."""
    lm = golden.lm_names[0]
    arrays = golden.npz(f"{lm}.generate.npz")
    prompts = [arrays[f"{case}.ids"] for case in golden.generate_cases(lm)[:2]]

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    with Scheduler(backend, golden.empty_id) as scheduler:
        before = 0
        for number in range(330):
            request = Request(prompts[number % 2], HOT, HOT, max_new=4, seed=number)
            assert len(list(scheduler.submit(request))) == 4
            if number == 29:
                before = resident()
        assert resident() - before < 4096, "KiB, over 300 answers"
