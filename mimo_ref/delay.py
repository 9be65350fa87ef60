"""The delay pattern: which codebook is written at which sub-step of the patch decoder."""

from dataclasses import dataclass


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
