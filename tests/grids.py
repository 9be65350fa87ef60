"""The goldens as the runtime takes them, and what it generates as the goldens have it."""

import numpy as np
from mimo_edge.runtime.backends.base import Backend
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.chat.segments import PromptLayout
from mimo_edge.runtime.generation.loop import generate
from mimo_edge.runtime.generation.request import Request, Step, join_steps, split_grid

from tests import check
from tests.golden import Golden

GREEDY = Sampling(0.0)


def layout_of(golden: Golden) -> PromptLayout:
    """How the prompts of the folder are laid out."""
    info = golden.info
    return PromptLayout(info["group_size"], info["audio_channels"], tuple(info["speech_empty_ids"]))


def forward_of(golden: Golden, lm: str, backend: Backend) -> tuple[np.ndarray, np.ndarray]:
    """What a forward pass of the goldens is given: text ids [P] and codes [P, K, G]."""
    grid = golden.npz(f"{lm}.forward.npz")["ids"]
    return split_grid(grid, backend.bundle.model.group_size)


def grid_of(backend: Backend, steps: list[Step]) -> np.ndarray:
    """Steps as a grid [1 + K, P * G]."""
    model = backend.bundle.model
    return join_steps(steps, model.empty_codes, model.group_size)


def check_greedy(golden: Golden, backend: Backend, lm: str, case: str) -> None:
    """A greedy answer has the ids of the goldens."""
    arrays = golden.npz(f"{lm}.generate.npz")
    prompt = arrays[f"{case}.ids"]
    expected = arrays[f"{case}.free.out"][:, prompt.shape[1] :]
    count = expected.shape[1] // backend.bundle.model.group_size
    request = Request(prompt, GREEDY, GREEDY, max_new=count)
    steps = list(generate(backend, request, golden.empty_id))
    check.equal(grid_of(backend, steps), expected, f"{case}.free.out")
