"""Which state names which word."""

import torch
from mimo_edge.mimo_ref.config import LanguageModelConfig
from mimo_edge.scripts.nano.lessons import SILENT
from mimo_edge.scripts.nano.namers import Namers
from mimo_edge.scripts.nano.sizes import NANO


def test_a_name_is_that_of_the_patch_before_or_after() -> None:
    namers = Namers(LanguageModelConfig.from_dict(NANO.language_model))
    size = namers.heard.in_features
    with torch.no_grad():
        for linear in (namers.heard, namers.said):
            linear.weight.copy_(50 * torch.eye(len(linear.weight), size))
    words = torch.tensor([[SILENT, 3, 4, SILENT, 5, 6, SILENT]])
    answers = torch.tensor([[False] * 4 + [True] * 3])
    told = torch.zeros(1, 7, size)
    told[0, [2, 3, 5, 6], [3, 4, 5, 6]] = 1.0  # one patch late
    foretold = torch.zeros(1, 7, size)
    foretold[0, [3, 4], [5, 6]] = 1.0  # one patch early
    found = namers.losses([told, told, foretold, foretold], words, answers)
    assert all(float(entropy.detach()) < 1e-3 for entropy in found.values()) and len(found) == 2
    assert namers.losses([told] * 4, torch.full_like(words, SILENT), answers) == {}
