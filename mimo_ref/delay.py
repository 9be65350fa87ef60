"""The delay pattern: which codebook is written at which sub-step of the patch decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DelaySchedule:
    """Codebook k of frame g is drawn at sub-step g + delays[k]; delays stay inside the patch."""

    delays: tuple[int, ...]
    group_size: int

    @property
    def sub_steps(self) -> int:
        return self.group_size + max(self.delays)

    def draws(self, sub_step: int) -> list[tuple[int, int]]:
        """(codebook, frame) pairs drawn at this sub-step, codebooks ascending."""
        return [
            (codebook, sub_step - delay)
            for codebook, delay in enumerate(self.delays)
            if 0 <= sub_step - delay < self.group_size
        ]

    def heads(self) -> list[list[int]]:
        """For each sub-step the codebooks that are drawn at it, and as many others as make all of
        one number; [sub_steps, M], each codebook at most once in a row."""
        books = range(len(self.delays))
        drawn = [[k for k, _ in self.draws(step)] for step in range(self.sub_steps)]
        most = max(map(len, drawn))
        rest = ([k for k in books if k not in row] for row in drawn)
        return [row + others[: most - len(row)] for row, others in zip(drawn, rest, strict=True)]

    def counts(self, sub_step: Tensor) -> Tensor:
        """sub_step [B] -> bool [B, K]: which codebooks are drawn at it."""
        frames = sub_step[:, None] - torch.tensor(self.delays, device=sub_step.device)
        return (frames >= 0) & (frames < self.group_size)
