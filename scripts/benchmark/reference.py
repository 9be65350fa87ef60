"""The PyTorch reference on the same patches: bfloat16, the dtype that it is fastest in."""

from pathlib import Path

import torch
from mimo_edge.mimo_ref.backbone import KVCache
from mimo_edge.mimo_ref.generate import Sampling, draw_patch
from mimo_edge.mimo_ref.weights import load_language_model
from mimo_edge.scripts.benchmark.stages import Stage, stage_of
from mimo_edge.scripts.machine import seconds_of

_HOT = Sampling(0.9, top_p=0.95)


@torch.inference_mode()
def reference_stages(checkpoint: Path, positions: int, runs: int, rate: float) -> list[Stage]:
    """Of one patch in one row, as `stages.patch_stages` has them. The weights stay mapped."""
    model = load_language_model(checkpoint, dtype=torch.bfloat16)
    config = model.config
    group, books = config.group_size, config.audio_channels
    cache = KVCache(config.backbone, 1, positions + runs + 1, torch.bfloat16)
    noise = torch.Generator().manual_seed(0)
    least = min(config.speech_zeroemb_idx)

    def grid(count: int) -> torch.Tensor:
        codes = torch.randint(0, least, (books, count * group), generator=noise)
        text = torch.full((1, count * group), model.empty_id)
        return torch.cat((text, codes))[None]

    hidden = model(grid(positions), cache)[:, -1]

    def step() -> None:
        nonlocal hidden
        hidden = model(grid(1), cache)[:, -1]
        model.backbone.text_logits(hidden)

    def draw() -> None:
        draw_patch(model, hidden, torch.rand(1, group, books, generator=noise), _HOT)

    step()
    draw()
    steps, draws = [], []
    for _ in range(runs):
        steps.append(seconds_of(step))
        draws.append(seconds_of(draw))

    def read(piece: torch.nn.Module, names: str = "") -> int:
        held = piece.state_dict().items()
        return sum(t.numel() * t.element_size() for n, t in held if not n.startswith(names or "-"))

    language = read(model.backbone) + read(model.patch_encoder, "text_embedding")
    speech = read(model.patch_decoder) * model.patch_decoder.schedule.sub_steps
    both = [a + b for a, b in zip(steps, draws, strict=True)]
    return [
        stage_of("step, reference", steps, language, rate),
        stage_of("patch_decoder, reference", draws, speech, rate),
        stage_of("patch, reference", both, language + speech, rate),
    ]
