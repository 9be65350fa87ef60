from collections.abc import Callable

import pytest
import torch
from mimo_edge.mimo_ref.delay import DelaySchedule
from mimo_edge.mimo_ref.generate import Sampling, removed_ids
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.parity import tolerances
from torch import Tensor

from tests import check
from tests.golden import Golden


@pytest.mark.parametrize("delays", [(0, 1, 2, 3), (0, 0, 0, 0), (3, 0, 5, 1), (7,)])
def test_schedule_draws_everything_once_and_in_order(delays: tuple[int, ...]) -> None:
    schedule = DelaySchedule(delays, group_size=4)
    steps = [schedule.draws(t) for t in range(schedule.sub_steps)]
    drawn = [pair for step in steps for pair in step]
    assert sorted(drawn) == [(k, g) for k in range(len(delays)) for g in range(4)]
    assert schedule.draws(schedule.sub_steps) == []
    for step, pairs in enumerate(steps):
        assert all(delays[k] + g == step for k, g in pairs)


def greedy(model: LanguageModel, record: dict[tuple[int, int], Tensor] | None = None):
    config = model.config
    pairs = zip(config.speech_vocab_size, config.speech_zeroemb_idx, strict=True)
    removed = [removed_ids(n, {e}) for n, e in pairs]

    def choose(scores: list[Tensor], draws: list[tuple[int, int]]) -> list[Tensor]:
        if record is not None:
            record.update(zip(draws, scores, strict=True))
        pairs = zip(scores, draws, strict=True)
        return [Sampling()(s, torch.zeros(len(s)), removed[k]) for s, (k, _) in pairs]

    return choose


def test_local(golden: Golden, load_lm: Callable[[str], LanguageModel], lm_name: str) -> None:
    model, arrays = load_lm(lm_name), golden.npz(f"{lm_name}.local.npz")
    decoder, hidden = model.patch_decoder, torch.tensor(arrays["hidden"])
    inputs, outputs, scores = [], [], {}
    stack = decoder.local_transformer
    hooks = [
        stack.register_forward_pre_hook(lambda _m, args: inputs.append(args[0])),
        stack.register_forward_hook(lambda _m, _i, out: outputs.append(out)),
    ]
    codes = decoder(hidden, greedy(model, scores))
    for hook in hooks:
        hook.remove()
    check.equal(codes, arrays["codes"], "codes")
    seen_in, seen_out = torch.cat(inputs, dim=1), torch.cat(outputs, dim=1)
    check.close(seen_in, arrays["step_inputs_embeds"], tolerances.LM, "step_inputs_embeds")
    check.close(seen_out, arrays["step_hidden"], tolerances.LM, "step_hidden")
    for k in range(model.config.audio_channels):
        logits = torch.stack([scores[k, g] for g in range(model.config.group_size)], dim=1)
        check.close(logits, arrays[f"logits_ch{k}"], tolerances.LOCAL_HEADS, f"logits_ch{k}")


def test_rows_equal_rows_alone(
    golden: Golden, load_lm: Callable[[str], LanguageModel], lm_name: str
) -> None:
    model = load_lm(lm_name)
    hidden = torch.tensor(golden.npz(f"{lm_name}.local.npz")["hidden"])
    together = model.patch_decoder(hidden, greedy(model))
    for row in range(len(hidden)):
        alone = model.patch_decoder(hidden[row : row + 1], greedy(model))
        assert torch.equal(together[row], alone[0])
