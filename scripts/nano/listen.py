"""Transcription with `mimo_ref`, by which training is judged while it runs."""

import random

import torch
from mimo_edge.mimo_ref.generate import Limits, Sampling, generate
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.runtime.chat import presets
from mimo_edge.runtime.chat.answer import answer_text, split_answer
from mimo_edge.scripts.nano.codes import Codes
from mimo_edge.scripts.nano.lessons import LAYOUT, Teacher

_LONGEST = 90  # patches of an answer; more is a failure


def transcribe(model: LanguageModel, teacher: Teacher, codes: Codes) -> str:
    """What is said in codes [K, T], greedily, as the preset of asr has it."""
    prompt = teacher.prompts.asr(codes, rng=random.Random(0))
    special, preset = teacher.tokenizer.special, presets.PRESETS["asr"]
    assert preset.text.greedy
    stops = frozenset(preset.stop_ids(special))
    limits = Limits(prompt.shape[1] // LAYOUT.group_size + _LONGEST, stop_ids=stops)
    unused = torch.zeros(1 + LAYOUT.group_size * LAYOUT.n_q)
    patches = generate(
        model, torch.from_numpy(prompt), limits, lambda step: unused, Sampling(), Sampling()
    )
    grid = torch.cat(list(patches), dim=1).numpy()
    stopped = int(grid[0, -LAYOUT.group_size]) in stops
    answer = split_answer(grid, LAYOUT, special, stopped=stopped)
    return answer_text(answer.text_ids, teacher.tokenizer)
