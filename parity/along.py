"""What two recordings chose along the same grids, and where their free runs part."""

from dataclasses import dataclass

import numpy as np
from mimo_edge.parity.choices import (
    DIFFERENT,
    EQUAL,
    NEAR,
    Choice,
    NearTies,
    divergence,
    entropy,
    gate,
    judge_choice,
)
from mimo_edge.parity.recording import Recording, Sequence
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.chat.segments import Grid
from mimo_edge.runtime.generation.request import split_grid
from mimo_edge.runtime.generation.sampling import Noise, sample

GREEDY = Sampling(0.0)


@dataclass(frozen=True, eq=False)
class Along:
    """One sequence: every choice, and curves by patch of the answer."""

    text: list[Choice]
    gate: list[Choice]
    codes: list[list[Choice]]  # by codebook; what follows a difference in its patch is left out
    kl: list[float]
    entropy: list[float]  # of the candidate
    entropy_own: list[float]


@dataclass(frozen=True)
class Parting:
    """Where two answers part: patch, and in speech frame and codebook."""

    patch: int
    where: str  # "text", "codes" or "length"
    frame: int | None
    codebook: int | None
    choice: Choice

    @property
    def near(self) -> bool:
        return self.choice.kind == NEAR


class Pair:
    """A candidate's recording and the model's, on the same inputs."""

    def __init__(self, candidate: Recording, own: Recording, near: NearTies) -> None:
        self.candidate, self.own, self.near = candidate, own, near
        self._layout = own.layout

    def along(self, sequence: Sequence) -> Along:
        """Judge what was chosen along the lead's grid."""
        name, noise = sequence.name, Noise(sequence.seed)
        scores, own = (r.arrays[f"logits/{name}"] for r in (self.candidate, self.own))
        text = []
        for step, (theirs, ours) in enumerate(zip(scores, own, strict=True)):
            uniform = float(noise(step, 1)[0])
            chosen = sample(theirs, uniform, sequence.text, ())
            text.append(judge_choice(ours, chosen, sequence.text, uniform, (), self.near))
        gates = [gate(s, self._layout.empty_id) for s in (scores, own)]
        chosen_gate = gates[0].argmax(-1).tolist()
        return Along(
            text,
            [
                judge_choice(ours, chosen, GREEDY, 0.0, (), self.near)
                for ours, chosen in zip(gates[1], chosen_gate, strict=True)
            ],
            self._codes(sequence),
            divergence(scores, own).tolist(),
            entropy(scores).tolist(),
            entropy(own).tolist(),
        )

    def _codes(self, sequence: Sequence) -> list[list[Choice]]:
        layout, name = self._layout, sequence.name
        _, grid = split_grid(self._answer(f"grid/{name}", sequence.prompt), layout.group_size)
        speech = self._speech(sequence)
        given = grid[speech].transpose(0, 2, 1)  # [S, G, K]
        chosen = self.candidate.arrays[f"codes/{name}"]
        found: list[list[Choice]] = [[] for _ in range(layout.n_q)]
        for s, step in enumerate(speech.tolist()):
            for frame, k in self.order():
                choice = self._code(sequence, s, step, frame, k, int(chosen[s, frame, k]))
                found[k].append(choice)
                if chosen[s, frame, k] != given[s, frame, k]:
                    break  # it goes on from another code than the model's scores do
        return found

    def _code(
        self, sequence: Sequence, s: int, step: int, frame: int, k: int, chosen: int
    ) -> Choice:
        """Judge one code of speech patch s, patch `step` of the answer."""
        scores = self.own.arrays.get(f"scores/{sequence.name}/{k}")
        if scores is None:
            expected = int(self.own.arrays[f"codes/{sequence.name}"][s, frame, k])
            kind = EQUAL if chosen == expected else DIFFERENT
            return Choice(expected, chosen, 0.0 if kind == EQUAL else None, kind)
        count = 1 + self._layout.group_size * self._layout.n_q
        uniforms = Noise(sequence.seed)(step, count)[1:].reshape(-1, self._layout.n_q)
        removed = (self._layout.empty_codes[k],)
        uniform = float(uniforms[frame, k])
        row: Floats = scores[s, frame]
        return judge_choice(row, chosen, sequence.audio, uniform, removed, self.near)

    def parting(self, sequence: Sequence, mine: Grid, theirs: Grid) -> Parting | None:
        """Where two whole answers [1 + K, A * G] part; None where they are equal."""
        name = sequence.name
        (ids, codes), (own_ids, own_codes) = (
            split_grid(grid, self._layout.group_size) for grid in (mine, theirs)
        )
        lead_ids, lead_codes = split_grid(
            self._answer(f"grid/{name}", sequence.prompt), self._layout.group_size
        )
        on_lead = True  # the model's scores are known along the lead's answer only
        for step in range(min(len(ids), len(own_ids))):
            on_lead = on_lead and step < len(lead_ids)
            if ids[step] != own_ids[step]:
                return self._text_parting(
                    sequence, step, int(ids[step]), int(own_ids[step]), on_lead
                )
            on_lead = on_lead and bool(ids[step] == lead_ids[step])
            for frame, k in self.order():
                pair = int(codes[step, k, frame]), int(own_codes[step, k, frame])
                if pair[0] != pair[1]:
                    choice = Choice(pair[1], pair[0], None, DIFFERENT)
                    if on_lead and f"scores/{name}/{k}" in self.own.arrays:
                        s = int(np.searchsorted(self._speech(sequence), step))
                        choice = self._by_model(
                            self._code(sequence, s, step, frame, k, pair[0]),
                            self._code(sequence, s, step, frame, k, pair[1]),
                        )
                    return Parting(step, "codes", frame, k, choice)
                on_lead = on_lead and bool(pair[1] == lead_codes[step, k, frame])
        if len(ids) != len(own_ids):
            choice = Choice(len(own_ids), len(ids), None, DIFFERENT)
            return Parting(min(len(ids), len(own_ids)), "length", None, None, choice)
        return None

    def _text_parting(
        self, sequence: Sequence, step: int, chosen: int, expected: int, on_lead: bool
    ) -> Parting:
        if not on_lead:
            return Parting(step, "text", None, None, Choice(expected, chosen, None, DIFFERENT))
        scores = self.own.arrays[f"logits/{sequence.name}"][step]
        uniform = float(Noise(sequence.seed)(step, 1)[0])
        sides = (
            judge_choice(scores, c, sequence.text, uniform, (), self.near)
            for c in (chosen, expected)
        )
        return Parting(step, "text", None, None, self._by_model(*sides))

    @staticmethod
    def _by_model(mine: Choice, theirs: Choice) -> Choice:
        """Two choices that differ, by the model's scores: the one further from them counts."""
        worst = max(mine, theirs, key=lambda c: c.margin or 0.0)
        return Choice(theirs.chosen, mine.chosen, worst.margin, worst.kind)

    def order(self) -> list[tuple[int, int]]:
        """(frame, codebook) in the order in which a patch is drawn."""
        frames, codebooks = range(self._layout.group_size), range(self._layout.n_q)
        places = [(frame, k) for frame in frames for k in codebooks]
        return sorted(places, key=lambda p: (p[0] + self._layout.delays[p[1]], p[1]))

    def _speech(self, sequence: Sequence) -> Ints:
        """Patches of the lead's answer that are speech."""
        text, _ = split_grid(
            self._answer(f"grid/{sequence.name}", sequence.prompt), self._layout.group_size
        )
        return np.flatnonzero(text == self._layout.empty_id)

    def _answer(self, name: str, prompt: int) -> Grid:
        grid: Grid = self.own.arrays[name]
        return grid[:, prompt * self._layout.group_size :]
