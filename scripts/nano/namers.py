"""Naming the words that sound, from states within the backbone: to teach, and no part of the model.

Upstream's training has nothing of the kind. From codes and transcripts alone, listening and above
all reading aloud are long in finding out which word sounds when.
"""

import torch.nn.functional as F
from mimo_edge.mimo_ref.config import LanguageModelConfig
from mimo_edge.scripts.nano.lessons import SILENT
from torch import Tensor, nn

WORD_WEIGHT = 20.0  # of each cross-entropy, beside upstream's weights
HEARD_LAYER = 1  # after it the backbone names the word that sounded a patch ago
SAID_LAYER = 3  # after it, the word that it is about to say; what follows makes a sound of it


class Namers(nn.Module):
    """A linear head for what was heard, and one for what is said next."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.heard = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.said = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def losses(self, states: list[Tensor], words: Tensor, answers: Tensor) -> dict[str, Tensor]:
        """Cross-entropies of what sounded and of what is about to, if anything does.

        States [B, P, D] after each layer; words int64 [B, P], answers bool [B, P].
        """
        sounded = words[:, :-1] != SILENT
        follows = (words[:, 1:] != SILENT) & answers[:, 1:]
        found = {}
        if sounded.any():
            names = self.heard(states[HEARD_LAYER][:, 1:][sounded])
            found["heard"] = F.cross_entropy(names, words[:, :-1][sounded])
        if follows.any():
            names = self.said(states[SAID_LAYER][:, :-1][follows])
            found["said"] = F.cross_entropy(names, words[:, 1:][follows])
        return found
