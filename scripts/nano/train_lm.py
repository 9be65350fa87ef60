"""Stage 3: the language model, jointly on all tasks, on the codes of the finished tokenizer."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mimo_edge.mimo_ref.config import LanguageModelConfig
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.mimo_ref.qwen2 import Layer
from mimo_edge.mimo_ref.weights import EMPTY_TOKEN
from mimo_edge.parity.word_errors import WordErrors
from mimo_edge.scripts.nano import forcing
from mimo_edge.scripts.nano.codes import fingerprint, read_codes
from mimo_edge.scripts.nano.journal import Journal, rate
from mimo_edge.scripts.nano.lessons import (
    Lesson,
    Lessons,
    Library,
    Teacher,
    collate,
    misheard,
    word_timing,
)
from mimo_edge.scripts.nano.listen import transcribe
from mimo_edge.scripts.nano.namers import WORD_WEIGHT, Namers
from mimo_edge.scripts.nano.sizes import (
    CODE_WEIGHTS,
    NANO,
    SPECIALS,
    TEXT_WEIGHT,
)
from mimo_edge.scripts.nano.text_tokenizer import write_tokenizer
from torch import Tensor, nn

_TOTAL_WEIGHT = TEXT_WEIGHT + sum(CODE_WEIGHTS)
_EMPTY_SHARE = 0.1  # of a word's weight: that speech goes on is soon learned, and said so often

# A batch is some hundred patches: squares of gradients want a memory of a thousand such steps.
_BETAS = (0.9, 0.998)


@dataclass(frozen=True)
class LanguageModelRun:
    """How it is trained."""

    steps: int = 24000
    batch: int = 16
    peak: float = 1.0e-3
    seed: int = 1
    save_every: int = 200
    judge_every: int = 1000
    judged: int = 80  # held-out sentences
    bfloat16: bool = False  # products of matrices; weights and sums stay float32
    compiled: bool = False  # by torch.compile, which needs a C++ compiler


def new_model() -> LanguageModel:
    """Nano's language model with weights that have seen nothing; the caller seeds torch."""
    config = LanguageModelConfig.from_dict(NANO.language_model)
    model = LanguageModel(config, SPECIALS[EMPTY_TOKEN])
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            depth = 0.3 if name.endswith(("o_proj", "down_proj")) else 0.8
            nn.init.normal_(module.weight, std=depth * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3 if "speech" in name else 0.5)
    return model


class LanguageModelTraining:
    """Model and optimiser.

    `namers` name words from states within the backbone: to teach, and no part of the model.
    """

    def __init__(self, run: LanguageModelRun) -> None:
        torch.manual_seed(run.seed)
        self.run = run
        self.model = new_model()
        if run.compiled:
            for module in self.model.modules():
                if isinstance(module, Layer):
                    module.compile(dynamic=True)
        self.namers = Namers(self.model.config)
        learned = [*self.model.parameters(), *self.namers.parameters()]
        matrices = [p for p in learned if p.ndim > 1]
        others = [p for p in learned if p.ndim == 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            groups, lr=run.peak, betas=_BETAS, weight_decay=0.03, fused=True
        )
        self.done = 0
        self.best = float("inf")

    def losses(self, lessons: list[Lesson]) -> tuple[Tensor, dict[str, Tensor]]:
        """Upstream's weighted cross-entropies, and each by itself."""
        grid, answers, words = collate(lessons, SPECIALS["<|endoftext|>"])
        fed = misheard(grid, self.run.seed * 1_000_003 + self.done)
        said, wanted, given, sounding = map(torch.from_numpy, (grid, answers, fed, words))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.run.bfloat16):
            return lesson_losses(self.model, said, wanted, given, sounding, self.namers)

    def step(self, lessons: list[Lesson]) -> dict[str, float]:
        """Learn from a batch."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.done, self.run.steps, self.run.peak, warmup=400)
        loss, parts = self.losses(lessons)
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.done += 1
        return {n: float(v.detach()) for n, v in (parts | {"gradient": norm}).items()}

    def state_dict(self) -> dict[str, Any]:
        """All that a later session needs."""
        return {
            "model": self.model.state_dict(),
            "namers": self.namers.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.namers.load_state_dict(state["namers"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done, self.best = state["done"], state["best"]


def lesson_losses(
    model: LanguageModel,
    grid: Tensor,
    answers: Tensor,
    fed: Tensor | None = None,
    words: Tensor | None = None,
    namers: Namers | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Grid [B, 1 + K, P * G], answers bool [B, P] -> the loss, and its parts.

    `fed` is what the backbone is given in place of `grid`, the same but for some codes. With the
    words that sound in each patch, int64 [B, P], `namers` learn to name them.
    `text` and `codes` are the unweighted means that a reader can compare; a batch in which nobody
    speaks has no part `codes`.
    """
    text_ids, codes = model.split_grid(grid)  # [B, P], [B, P, K, G]
    wanted = answers[:, 1:]
    states = forcing.states(model, grid if fed is None else fed)
    hidden = states[-1][:, :-1]  # what is known before each wanted patch
    said = text_ids[:, 1:][wanted]
    share = torch.where(said == model.empty_id, _EMPTY_SHARE, 1.0)
    entropies = F.cross_entropy(model.backbone.text_logits(hidden[wanted]), said, reduction="none")
    text = (share * entropies).sum() / share.sum()
    loss, parts = TEXT_WEIGHT * text, {"text": text}
    speaks = wanted & (text_ids[:, 1:] == model.empty_id)
    if speaks.any():
        spoken = codes[:, 1:][speaks]  # [M, K, G]
        heads = forcing.code_scores(model.patch_decoder, hidden[speaks], spoken)
        by_codebook = [
            F.cross_entropy(head.flatten(0, 1), spoken[:, k].flatten())
            for k, head in enumerate(heads)
        ]
        for weight, entropy in zip(CODE_WEIGHTS, by_codebook, strict=True):
            loss = loss + weight * entropy
        parts |= {"codes": torch.stack(by_codebook).mean(), "first": by_codebook[0]}
    if words is not None and namers is not None:
        named = namers.losses(states, words, answers)
        for entropy in named.values():
            loss = loss + WORD_WEIGHT * entropy
        parts |= named
    return loss / _TOTAL_WEIGHT, parts


def train_language_model(
    work: Path, tokenizer: Path, codes: Path, run: LanguageModelRun, minutes: float | None = None
) -> bool:
    """Train, or go on training, in `work`/language_model; returns whether all steps are done.

    `codes` are those of the saved audio `tokenizer`. Raises ValueError if the training there is
    that of another tokenizer.
    """
    journal = Journal(work / "language_model")
    training = LanguageModelTraining(run)
    identity = fingerprint(tokenizer)
    state = journal.load()
    if state is not None:
        if state["tokenizer"] != identity:
            raise ValueError(
                f"{journal.folder} was trained on the codes of another audio tokenizer "
                f"({state['tokenizer']}, not {identity}). Move it away to start anew."
            )
        training.load_state_dict(state)
    write_tokenizer(journal.folder)
    teacher = Teacher(journal.folder)
    coded = list(read_codes(work, codes))
    timing = word_timing(coded)
    lessons = Lessons(teacher, Library.of(coded, "train", timing), run.batch, run.seed)
    held_out = Library.of(coded, "held_out", timing)
    del coded
    while training.done < run.steps and not journal.spent(minutes):
        figures = training.step(lessons[training.done])
        if training.done % 50 == 0:
            journal.log(training.done, **figures)
        last = training.done == run.steps
        if training.done % run.judge_every == 0 or last:
            judged = judge(training.model, teacher, held_out, run.judged)
            journal.log(training.done, **{f"held_out_{k}": v for k, v in judged.items()})
            score = judged["error_rate"] + judged["first"] / 2
            if score < training.best:
                training.best = score
                journal.save({"model": training.model.state_dict(), **judged}, "best")
        if training.done % run.save_every == 0 or last:
            journal.save(training.state_dict() | {"tokenizer": identity})
    journal.save(training.state_dict() | {"tokenizer": identity})
    return training.done >= run.steps


@torch.no_grad()
def judge(model: LanguageModel, teacher: Teacher, library: Library, count: int) -> dict[str, float]:
    """Held-out: word error rate of transcription, and the cross-entropies of reading aloud."""
    rng = random.Random(0)
    texts = rng.sample(sorted(library.own), min(count, len(library.own)))
    lessons = [teacher.tts(library.own[text][0], rng) for text in texts]
    grid, answers, _ = collate(lessons, SPECIALS["<|endoftext|>"])
    errors = WordErrors()
    with torch.compiler.set_stance("force_eager"):  # what comes once is not worth compiling
        _, parts = lesson_losses(model, torch.from_numpy(grid), torch.from_numpy(answers))
        for text in texts:
            errors.add(transcribe(model, teacher, library.heard[text][0].codes), text)
    return {"error_rate": errors.rate} | {k: float(v) for k, v in parts.items()}
