"""Training's parallel passes against the step by step ones of `mimo_ref`."""

import pytest
import torch
from mimo_edge.mimo_ref.backbone import KVCache
from mimo_edge.mimo_ref.config import LanguageModelConfig
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.scripts.checkpoint.presets import PRESETS
from mimo_edge.scripts.nano import forcing
from mimo_edge.scripts.nano.train_lm import lesson_losses
from torch import Tensor

EMPTY = 481


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(LanguageModelConfig.from_dict(PRESETS["tiny"].language_model), EMPTY)


def some_grid(model: LanguageModel, rows: int, patches: int) -> Tensor:
    """Text and speech patches in a random order, [B, 1 + K, P * G]."""
    config = model.config
    text = torch.randint(0, 400, (rows, patches))
    text[torch.rand(rows, patches) < 0.5] = EMPTY
    codes = [
        torch.randint(0, size - 1, (rows, patches * config.group_size))
        for size in config.speech_vocab_size
    ]
    return torch.stack([text.repeat_interleave(config.group_size, dim=1), *codes], dim=1)


def test_states_equal_the_cached_backbone(model: LanguageModel) -> None:
    grid = some_grid(model, 2, 9)
    cache = KVCache(model.config.backbone, 2, 16)
    with torch.no_grad():
        torch.testing.assert_close(forcing.states(model, grid)[-1], model(grid, cache))


def test_states_of_a_grid_without_speech(model: LanguageModel) -> None:
    grid = some_grid(model, 2, 5)
    grid[:, 0] = 7
    with torch.no_grad():
        cache = KVCache(model.config.backbone, 2, 8)
        torch.testing.assert_close(forcing.states(model, grid)[-1], model(grid, cache))


@pytest.mark.parametrize("delays", [(0, 1, 2, 3, 4, 5, 6, 7), (0,) * 8, (2, 0, 1, 1, 0, 3, 0, 2)])
def test_code_scores_equal_the_sub_steps(delays: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    pattern = {"delay_pattern": "-".join(map(str, delays))}
    config = LanguageModelConfig.from_dict(PRESETS["tiny"].language_model | pattern)
    decoder = LanguageModel(config, EMPTY).patch_decoder
    hidden = torch.randn(5, config.hidden_size)
    codes = torch.stack(  # [M, K, G]
        [torch.randint(0, n - 1, (5, config.group_size)) for n in config.speech_vocab_size], dim=1
    )
    step_by_step: dict[tuple[int, int], Tensor] = {}

    def choose(scores: list[Tensor], draws: list[tuple[int, int]]) -> list[Tensor]:
        step_by_step.update(zip(draws, scores, strict=True))
        return [codes[:, k, g] for k, g in draws]

    with torch.no_grad():
        at_once = forcing.code_scores(decoder, hidden, codes)
        decoder(decoder.hidden_states_downcast(hidden), choose)
    for (k, g), scores in step_by_step.items():
        torch.testing.assert_close(at_once[k][:, g], scores, atol=1e-5, rtol=1e-5)


def test_the_loss_looks_at_answers_only(model: LanguageModel) -> None:
    grid = some_grid(model, 2, 8)
    answers = torch.zeros(2, 8, dtype=torch.bool)
    answers[:, 5:7] = True
    loss, _ = lesson_losses(model, grid, answers)
    changed = grid.clone()
    changed[:, :, 7 * model.config.group_size :] = 3
    assert lesson_losses(model, changed, answers)[0] == loss
    changed[:, :, 5 * model.config.group_size :] = 3
    assert lesson_losses(model, changed, answers)[0] != loss


def test_all_weights_learn(model: LanguageModel) -> None:
    loss, _ = lesson_losses(model, some_grid(model, 4, 12), torch.ones(4, 12, dtype=torch.bool))
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_products_in_bfloat16_keep_the_direction_of_the_gradient(model: LanguageModel) -> None:
    grid, answers = some_grid(model, 4, 12), torch.ones(4, 12, dtype=torch.bool)

    def gradient(*, bfloat16: bool) -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss, _ = lesson_losses(model, grid, answers)
        loss.backward()
        used = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat(used)

    exact, rounded = gradient(bfloat16=False), gradient(bfloat16=True)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.999


def test_a_causal_patch_encoder() -> None:
    shape = PRESETS["tiny"].language_model | {"input_full_attention": False}
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig.from_dict(shape), EMPTY)
    grid = some_grid(model, 2, 5)
    with torch.no_grad():
        cache = KVCache(model.config.backbone, 2, 8)
        torch.testing.assert_close(forcing.states(model, grid)[-1], model(grid, cache))
