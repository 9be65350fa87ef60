"""Prompts on the TensorRT backend: runs of few lengths, in rows that are unequal."""

from typing import Any

import numpy as np
import pytest
from mimo_edge.parity import tolerances
from mimo_edge.runtime.backends.trt_context import Context
from mimo_edge.runtime.backends.trt_rows import run_length
from mimo_edge.runtime.bundle.engine import PREFILL_LENGTHS

from tests import check
from tests.engines.conftest import Open
from tests.golden import Golden
from tests.grids import forward_of

PRODUCTS = ("trt-rtx", "trt")


@pytest.mark.parametrize("product", PRODUCTS)
def test_chunked_prefill_of_unequal_rows(
    golden: Golden, open_fake: Open, lm_name: str, product: str
) -> None:
    """Prompts in chunks of 7, in two rows that begin and end at unequal positions; then both step
    together. Both rows are held against the goldens at every position that these have."""
    arrays = golden.npz(f"{lm_name}.forward.npz")
    backend, _ = open_fake(lm_name, product)
    with backend:
        text, codes = forward_of(golden, lm_name, backend)
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
        text, codes = forward_of(golden, lm_name, backend)
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
        text, codes = forward_of(golden, lm, backend)
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
