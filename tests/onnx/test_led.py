"""A bundle that is led along its own greedy answer makes the choices that it made."""

import random
from dataclasses import replace

import numpy as np
import pytest
from mimo_edge.parity.forced import LedBundle, Recorded
from mimo_edge.parity.precision import compare
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.generation.loop import generate
from mimo_edge.runtime.generation.request import Request, join_steps, split_grid
from mimo_edge.runtime.tasks import MimoAudio

from tests.bundles import exported
from tests.golden import Golden

NEW = 8  # patches of an answer


@pytest.fixture(scope="module")
def told(golden: Golden) -> tuple[Bundle, int, list[Recorded]]:
    """Two greedy answers of different lengths, the empty id, and the bundle that gave them."""
    bundle = Bundle.open(exported(golden, golden.lm_names[0]))
    found = []
    with MimoAudio.open(bundle.folder, threads=1) as model:
        empty, size = model.tokenizer.special.empty, bundle.model.group_size
        for text in ("Hello.", "Good morning to all of you."):
            prompt, greedy = model.prompts.tts(text, rng=random.Random(0)), Sampling(0.0)
            request = Request(prompt, greedy, greedy, max_new=NEW)
            steps = list(generate(model.backend, request, empty))
            grid = np.concatenate(
                (prompt, join_steps(steps, bundle.model.empty_codes, size)), axis=1
            )
            found.append(Recorded(*split_grid(grid, size), prompt.shape[1] // size))
    return bundle, empty, found


def test_it_makes_the_choices_that_it_made(told: tuple[Bundle, int, list[Recorded]]) -> None:
    bundle, empty, sequences = told
    led = LedBundle(bundle, 1).along(sequences, empty)
    spoken = 0
    for sequence, logits, scores in zip(sequences, led.logits, led.scores, strict=True):
        answer = slice(sequence.answer, len(sequence))
        ids = logits[sequence.answer - 1 : -1].argmax(-1)
        np.testing.assert_array_equal(ids, sequence.text_ids[answer])
        places = np.flatnonzero(sequence.text_ids[answer] == empty) + sequence.answer
        spoken += len(places)
        for k, head in enumerate(scores):
            assert head.shape[:2] == (len(places), bundle.model.group_size)
            head[..., bundle.model.empty_codes[k]] = -np.inf
            np.testing.assert_array_equal(head.argmax(-1), sequence.codes[places, k])
    assert spoken, "no answer spoke: this shows nothing of the patch decoder"
    same = compare(led, led, sequences, empty, bundle.model.empty_codes)
    assert same.text.differ == same.gate.differ == 0 and same.text.kl == 0
    assert same.embeddings.snr == same.local_hidden.snr == np.inf


def test_what_is_read_decides_what_follows(told: tuple[Bundle, int, list[Recorded]]) -> None:
    """Other codes in a patch change the scores of the rest of that patch, and none before."""
    bundle, empty, sequences = told
    sequence = next(s for s in sequences if (s.text_ids[s.answer :] == empty).any())
    place = int(np.flatnonzero(sequence.text_ids[sequence.answer :] == empty)[0])
    codes = sequence.codes.copy()
    at = sequence.answer + place
    codes[at, 0, 1] = (codes[at, 0, 1] + 1) % bundle.model.code_vocab[0]
    led = [
        LedBundle(bundle, 1).along([s], empty).scores[0][0][0]  # codebook 0 of the first patch
        for s in (sequence, replace(sequence, codes=codes))
    ]
    np.testing.assert_array_equal(led[0][:2], led[1][:2])
    assert (led[0][2:] != led[1][2:]).any()
