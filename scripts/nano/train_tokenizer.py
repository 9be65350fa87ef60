"""Stage 1: the audio tokenizer, from spectral distances and the commitment to its codebooks.

Later its decoder can be trained on alone: the codes stay what they are, and with them whatever a
language model has learned from them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from mimo_edge.mimo_ref.mel import log_mel
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.scripts.nano.codebooks import CodebookTrainer
from mimo_edge.scripts.nano.data import (
    Samples,
    held_out,
    read_shard,
    shards,
    to_float,
)
from mimo_edge.scripts.nano.journal import Journal, rate
from mimo_edge.scripts.nano.losses import Distances, codec_figures
from mimo_edge.scripts.nano.sizes import NANO
from torch import Tensor

DECODER_STEPS = 3600  # of training the decoder on, alone
_CROPS = ((24000, 8), (24000, 8), (57600, 3))  # samples, clips; long ones so that long clips work
_KMEANS_BATCHES = 24
_ENDS_SHARE = 0.25  # of the batches end as clips end
_SHARDS = 12  # of the clips in memory: sound enough, the language model sees all
_MEL_WEIGHT, _HARMONICS_WEIGHT, _COMMITMENT_WEIGHT = 2.0, 1.0, 0.2


@dataclass(frozen=True)
class TokenizerRun:
    """How it is trained."""

    steps: int = 3000
    open_steps: int = 300  # without quantisation, so that codebooks start from states with meaning
    peak: float = 1.0e-3
    seed: int = 1
    save_every: int = 200
    judge_every: int = 400
    judged: int = 24  # held-out clips


class TokenizerTraining:
    """Model, codebooks and optimiser; `step` and `judge` are what a run is made of.

    `decoder_only` leaves encoder and codebooks as they are.
    """

    def __init__(self, run: TokenizerRun, *, decoder_only: bool = False) -> None:
        torch.manual_seed(run.seed)
        self.run, self.decoder_only = run, decoder_only
        self.config = AudioTokenizerConfig.from_dict(NANO.audio_tokenizer)
        self.model = AudioTokenizer(self.config)
        bins = self.config.nfft // 2 + 1
        with torch.no_grad():  # start from a whisper, not from noise at full level
            self.model.decoder.vocoder.head.out.bias[:bins] -= 3.0
        self.codebooks = CodebookTrainer(self.model.quantizer)
        self.model.encoder.requires_grad_(not decoder_only)
        self.distances = Distances(self.config)
        learned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            learned, lr=run.peak, betas=(0.8, 0.99), weight_decay=0.01, fused=True
        )
        self.done = 0
        self.best = float("inf")

    def states(self, wav: Tensor, *, ends: bool = False) -> Tensor:
        """wav [B, N], N a whole number of code frames -> encoder states [B, T, D].

        `ends`: as at the end of a clip, where the mel reaches one frame beyond the sound and makes
        one more code frame, T + 1, of which most is padding.
        """
        with torch.no_grad():
            mel = torch.stack([log_mel(w, self.config) for w in wav])
            mel = mel if ends else mel[:, :-1]
        return self.model.encoder(mel, torch.full((len(wav),), mel.shape[1]))

    def sound(self, states: Tensor) -> Tensor:
        """States [B, T, D] -> wav [B, T * samples_per_frame]."""
        return self.model.decoder(states, torch.full((len(states),), states.shape[1]))

    def step(self, wav: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Learn from wav [B, N], N a whole number of code frames."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.done, self.run.steps, self.run.peak)
        ends = float(torch.rand((), generator=generator)) < _ENDS_SHARE
        states = self.states(wav, ends=ends)
        if ends:  # after the sound there is silence
            wav = F.pad(wav, (0, self.config.samples_per_frame))
        commitment, renewed = torch.zeros(()), 0
        if self.done >= self.run.open_steps:
            depths = _depths(len(wav), len(self.config.codebook_size), generator)
            quantised, commitment, codes = self.codebooks.quantise(states, depths)
            if not self.decoder_only:
                vectors = states.detach().flatten(0, 1), codes.transpose(0, 1).flatten(1)
                renewed = self.codebooks.update(*vectors, generator)
        else:
            quantised = states
        made = self.sound(quantised)
        mel, stft = self.distances.mel(made, wav), self.distances.stft(made, wav)
        harmonics = self.distances.harmonics(made, wav)
        spectral = _MEL_WEIGHT * mel + _HARMONICS_WEIGHT * harmonics + stft
        loss = spectral + _COMMITMENT_WEIGHT * commitment
        self.optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimiser.step()
        self.done += 1
        figures = {"mel": mel, "harmonics": harmonics, "stft": stft, "commitment": commitment}
        values = {name: float(value.detach()) for name, value in figures.items()}
        return values | {"gradient": float(norm), "renewed": float(renewed)}

    @torch.no_grad()
    def start_codebooks(self, batches: Iterator[Tensor], generator: torch.Generator) -> None:
        """K-means on the states of some batches."""
        vectors = [self.states(next(batches)).flatten(0, 1) for _ in range(_KMEANS_BATCHES)]
        self.codebooks.initialise(torch.cat(vectors), generator)

    @torch.no_grad()
    def judge(self, wavs: list[Tensor]) -> dict[str, float]:
        """Mean mel and STFT distance of whole clips [N] through all codebooks."""
        pairs = ((self.model.decode(self.model.encode(wav)), wav) for wav in wavs)
        return codec_figures(self.distances, pairs)

    def state_dict(self) -> dict[str, Any]:
        """All that a later session needs."""
        return {
            "model": self.model.state_dict(),
            "codebooks": self.codebooks.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.codebooks.load_state_dict(state["codebooks"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done, self.best = state["done"], state["best"]


def train_tokenizer(work: Path, run: TokenizerRun, minutes: float | None = None) -> bool:
    """Train, or go on training, in `work`/tokenizer; returns whether all steps are done."""
    return _train(work, Journal(work / "tokenizer"), TokenizerTraining(run), minutes)


def train_decoder(work: Path, run: TokenizerRun, minutes: float | None = None) -> bool:
    """Train the decoder of the best tokenizer on, in `work`/decoder, for the same codes.

    Raises ValueError before there is a tokenizer.
    """
    start = Journal(work / "tokenizer").load("best")
    if start is None:
        raise ValueError(f"{work / 'tokenizer'} has no trained tokenizer: run that stage first")
    training = TokenizerTraining(replace(run, open_steps=0), decoder_only=True)
    training.model.load_state_dict(start["model"])
    training.best = start["mel"]
    return _train(work, Journal(work / "decoder"), training, minutes)


def _train(
    work: Path, journal: Journal, training: TokenizerTraining, minutes: float | None
) -> bool:
    run, state = training.run, journal.load()
    if state is not None:
        training.load_state_dict(state)
    sounds, judged = _load(work, run)
    while training.done < run.steps and not journal.spent(minutes):
        # the randomness of a step depends on its number alone, so a resumed run is the same run
        generator = torch.Generator().manual_seed(run.seed * 1_000_003 + training.done)
        if training.done == run.open_steps and not training.decoder_only:
            training.start_codebooks(_batches(sounds, generator), generator)
        figures = training.step(next(_batches(sounds, generator)), generator)
        if training.done % 50 == 0:
            journal.log(training.done, **figures)
        last = training.done == run.steps
        if training.done % run.judge_every == 0 or last:
            held_out = training.judge(judged)
            journal.log(training.done, **{f"held_out_{k}": v for k, v in held_out.items()})
            if training.done > run.open_steps and held_out["mel"] < training.best:
                training.best = held_out["mel"]
                journal.save({"model": training.model.state_dict(), **held_out}, "best")
        if training.done % run.save_every == 0 or last:
            journal.save(training.state_dict())
    journal.save(training.state_dict())
    return training.done >= run.steps


def _depths(rows: int, codebooks: int, generator: torch.Generator) -> Tensor:
    """Half of the rows use all codebooks, half fewer, so that few codebooks are worth something."""
    fewer = torch.randint(1, codebooks + 1, (rows,), generator=generator)
    return torch.where(torch.rand(rows, generator=generator) < 0.5, codebooks, fewer)


def _load(work: Path, run: TokenizerRun) -> tuple[list[Samples], list[Tensor]]:
    """Sounds to train on, and held-out ones as float [N]."""
    paths = shards(work)
    sounds = [s for path in paths[:_SHARDS] for clip, s in read_shard(path) if clip.part == "train"]
    noisy = (s for clip, s in held_out(work) if clip.part == "held_out" and not clip.own)
    return sounds, [torch.from_numpy(to_float(s)) for s in islice(noisy, run.judged)]


def _batches(sounds: list[Samples], generator: torch.Generator) -> Iterator[Tensor]:
    """Random crops [B, N]. Clips that are too short are followed by others."""

    def pick(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    while True:
        size, count = _CROPS[pick(len(_CROPS))]
        crops = []
        for _ in range(count):
            clip = sounds[pick(len(sounds))]
            while len(clip) < size:
                clip = np.concatenate([clip, sounds[pick(len(sounds))]])
            start = pick(len(clip) - size + 1)
            crops.append(torch.from_numpy(to_float(clip[start : start + size])))
        yield torch.stack(crops)
