from collections.abc import Callable

import pytest
import torch
from mimo_edge.mimo_ref.generate import Limits, Sampling, generate
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.parity import tolerances

from tests import check
from tests.golden import Golden

Load = Callable[[str], LanguageModel]


def extend(
    model: LanguageModel, grid: torch.Tensor, limits: Limits, **kwargs: object
) -> torch.Tensor:
    return torch.cat([grid, *generate(model, grid, limits, **kwargs)], dim=1)


def test_generate(golden: Golden, load_lm: Load, lm_name: str, generate_case: str) -> None:
    model, arrays = load_lm(lm_name), golden.npz(f"{lm_name}.generate.npz")
    grid = torch.tensor(arrays[f"{generate_case}.ids"])
    group = model.config.group_size
    prompt = grid.shape[1] // group
    stops = frozenset(arrays[f"{generate_case}.stop_tokens"].tolist())
    fewest, most = arrays[f"{generate_case}.minlen.min_max_new_groups"].tolist()

    def patches(name: str) -> int:
        return arrays[f"{generate_case}.{name}.out"].shape[1] // group

    for name, limits in {
        "free": Limits(patches("free")),
        "stopped": Limits(prompt + most, stop_ids=stops),
        "minlen": Limits(prompt + most, prompt + fewest, stops),
        "cfgmax": Limits(patches("cfgmax")),
    }.items():
        check.equal(extend(model, grid, limits), arrays[f"{generate_case}.{name}.out"], name)


def test_pipeline(golden: Golden, load_lm: Load, tokenizer: AudioTokenizer) -> None:
    """Audio to codes, greedy answers from the recorded prompts, and codes back to audio."""
    arrays, model = golden.npz("pipeline.npz"), load_lm(golden.lm_names[0])
    group, channels = model.config.group_size, model.config.audio_channels
    codes = tokenizer.encode(torch.tensor(arrays["wav24k"]), channels)
    codes = torch.cat((codes, codes[:, -1:].expand(-1, -codes.shape[1] % group)), dim=1)
    check.equal(codes.T.flatten(), arrays["audio_tokenized"], "audio_tokenized")

    special = golden.info["special_ids"]
    ends = {golden.info["eos_token_id"], special["<|im_end|>"]}
    for name, stops, prefix in (
        ("asr", ends, []),
        ("dlg", ends | {special["<|eostm|>"]}, []),
        ("dlg2", ends | {special["<|eostm|>"]}, ["dlg.out"]),
    ):
        grid = torch.tensor(arrays[f"{name}.ids"])
        grid = torch.cat([torch.tensor(arrays[p]) for p in prefix] + [grid], dim=1)
        expected = arrays[f"{name}.out"]
        end = expected.shape[1] // group
        # the set does not record min_new_tokens: one less than was generated gives the same answer,
        # because no earlier patch of it holds a stop id
        limits = Limits(end, end - 1, frozenset(stops))
        check.equal(extend(model, grid, limits), expected, f"{name}.out")

    answer = torch.tensor(arrays["dlg.out"])[:, arrays["dlg.ids"].shape[1] : -group]
    text = answer[0, ::group]
    ended = (text == special["<|eostm|>"]).nonzero().flatten().tolist()
    ended = [*ended, len(text)]
    spoken = answer[1:, : ended[0] * group]
    spoken = spoken[:, spoken[0] != model.config.speech_zeroemb_idx[0]]
    check.close(
        tokenizer.decode(spoken)[None, None], arrays["dlg.wav"], tolerances.AUDIO, "dlg.wav"
    )


def test_seeded_noise_repeats(golden: Golden, load_lm: Load) -> None:
    model = load_lm(golden.lm_names[0])
    grid = torch.tensor(golden.npz("pipeline.npz")["dlg.ids"])
    limits = Limits(grid.shape[1] // model.config.group_size + 4)
    hot = Sampling(temperature=1.0, top_p=0.95)
    draws = 1 + model.config.group_size * model.config.audio_channels

    def noise(seed: int) -> Callable[[int], torch.Tensor]:
        def draw(step: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed * 1000 + step)
            return torch.rand(draws, generator=generator)

        return draw

    def run(seed: int) -> torch.Tensor:
        return extend(model, grid, limits, noise=noise(seed), text=hot, audio=hot)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_full_prompt_is_refused(golden: Golden, load_lm: Load) -> None:
    model = load_lm(golden.lm_names[0])
    grid = torch.tensor(golden.npz("pipeline.npz")["dlg.ids"])
    with pytest.raises(ValueError, match="limit"):
        next(generate(model, grid, Limits(grid.shape[1] // model.config.group_size)))
