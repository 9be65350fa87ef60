"""A candidate's recording judged by the model's: every check of the report, and what it shows."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from mimo_edge.parity.along import Along, Pair, Parting
from mimo_edge.parity.choices import DIFFERENT, EQUAL, NEAR, Agreement, Choice, NearTies
from mimo_edge.parity.findings import Bisected
from mimo_edge.parity.recording import Recording, Sequence
from mimo_edge.parity.stage_figures import Figures
from mimo_edge.parity.stream_quality import seam_error
from mimo_edge.parity.thresholds import Thresholds
from mimo_edge.parity.tolerances import mel_difference, snr
from mimo_edge.runtime.bundle.errors import InputError

FOLLOWS = {
    "embeddings": "patch_encoder",
    "sound": "tokenizer_decoder",
    "streamed": "tokenizer_decoder, streamed",
}


@dataclass(frozen=True)
class Check:
    """One line of the report. `passed` is None where the precision has no limit; `value` is also
    the smallest limit that would pass."""

    name: str
    stage: str
    title: str
    value: float
    unit: str
    better: str
    limit: float | None
    passed: bool | None
    reason: str
    near_ties: int = 0
    count: int = 0


@dataclass(frozen=True, eq=False)
class SequenceVerdict:
    """One prompt and its answers."""

    sequence: Sequence
    along: Along
    parting: Parting | None  # of the free runs
    in_batch: bool  # whether it was answered in a batch, too
    batched: Parting | None  # of the candidate's own answer in a batch
    stops: tuple[bool, bool]  # candidate, model
    lengths: tuple[int, int]  # patches of the free runs


@dataclass(frozen=True, eq=False)
class Verdict:
    """A candidate judged."""

    candidate: Recording
    own: Recording
    checks: list[Check] = field(default_factory=list)
    figures: list[tuple[str, str, Figures]] = field(default_factory=list)  # stage, of what
    heard: list[Agreement] = field(default_factory=list)  # by codebook
    codes: list[Agreement] = field(default_factory=list)
    sequences: list[SequenceVerdict] = field(default_factory=list)
    bisected: Bisected | None = None

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    @property
    def first_failed(self) -> str | None:
        """The first stage, in the order of computing, whose check failed."""
        return next((check.stage for check in self.checks if check.passed is False), None)


def judge(candidate: Recording, own: Recording, thresholds: Thresholds) -> Verdict:
    """Judge by the thresholds of the candidate's precision. Raises InputError for recordings of
    other inputs."""
    if candidate.lead != own.lead or candidate.sequences != own.sequences:
        raise InputError(
            f"the recordings {candidate.identity['name']} and {own.identity['name']} are of "
            "different inputs. Judge one of them against a checkpoint or a bundle, which then "
            "reads its inputs."
        )
    return _Judge(candidate, own, thresholds).verdict


class _Judge:
    def __init__(self, candidate: Recording, own: Recording, thresholds: Thresholds) -> None:
        self.verdict = Verdict(candidate, own)
        self._thresholds, self._precision = thresholds, candidate.identity["precision"]
        margins = [
            thresholds.margin(f"near_tie_{what}", self._precision)
            for what in ("scores", "probability", "distance")
        ]
        self._pair = Pair(candidate, own, NearTies(margins[0], margins[1]))
        self._near_distance = margins[2]
        self._prompts()
        self._mel()
        self._heard()
        self._figures("embeddings", "embeddings_snr")
        self._logits()
        self._choices()
        self._figures("sound", "sound_snr")
        self._figures("streamed", "streamed_snr")
        self._answers()

    def _prompts(self) -> None:
        if not self.verdict.own.sequences:
            return
        wrong = sum(not np.array_equal(mine, theirs) for _, mine, theirs in self._both("prompt"))
        self._check("prompts_differ", wrong, count=len(self.verdict.own.sequences))

    def _mel(self) -> None:
        worst = 0.0
        for name, mine, theirs in self._both("mel"):
            worst = max(worst, mel_difference(mine, theirs)[0])
            self.verdict.figures.append(("mel", name, Figures.of(mine, theirs)))
        if self.verdict.own.clips:
            self._check("mel_relative", worst, count=len(self.verdict.own.clips))

    def _heard(self) -> None:
        """Codes of each codebook; what follows a difference in its frame is left out."""
        choices: list[list[Choice]] = []
        for name, mine, theirs in self._both("heard"):
            margins = self.verdict.own.arrays.get(f"margins/{name}")
            choices = choices or [[] for _ in theirs]
            if mine.shape != theirs.shape:
                for row in choices:
                    row.append(Choice(0, -1, None, DIFFERENT))
                continue
            for frame in range(theirs.shape[1]):
                for k in range(len(theirs)):
                    expected, chosen = int(theirs[k, frame]), int(mine[k, frame])
                    margin = None if margins is None else float(margins[k, frame])
                    kind = EQUAL
                    if chosen != expected:
                        near = margin is not None and margin < self._near_distance
                        kind = NEAR if near else DIFFERENT
                    choices[k].append(Choice(expected, chosen, margin, kind))
                    if kind != EQUAL:
                        break  # the later codebooks encode another residual
        self.verdict.heard.extend(map(Agreement.of, choices))
        self._worst("heard_agreement", self.verdict.heard[: self.verdict.own.layout.n_q])

    def _figures(self, kind: str, check: str) -> None:
        found = []
        for name, mine, theirs in self._both(kind):
            found.append(Figures.of(mine, theirs))
            self.verdict.figures.append((FOLLOWS[kind], name, found[-1]))
        if found:
            self._check(check, min(f.snr for f in found), count=len(found))

    def _logits(self) -> None:
        ways = (("prefill_snr", slice(0, 1)), ("step_snr", slice(1, None)))
        for check, part in ways:
            stage = self._thresholds.all[check].stage
            found = []
            for name, mine, theirs in self._both("logits"):
                if len(theirs[part]):
                    found.append(Figures.of(mine[part], theirs[part]))
                    self.verdict.figures.append((stage, name, found[-1]))
            if found:
                self._check(check, min(f.snr for f in found), count=len(found))

    def _choices(self) -> None:
        n_q = self.verdict.own.layout.n_q
        codes: list[list[Choice]] = [[] for _ in range(n_q)]
        text: list[Choice] = []
        gates: list[Choice] = []
        kl: list[float] = []
        for sequence in self.verdict.own.sequences:
            along = self._pair.along(sequence)
            self._add_sequence(sequence, along)
            text += along.text
            gates += along.gate
            kl += along.kl
            for k, choices in enumerate(along.codes):
                codes[k] += choices
        if not text:
            return
        self._worst("text_agreement", [Agreement.of(text)])
        self._worst("gate_agreement", [Agreement.of(gates)])
        self._check("text_kl", float(np.mean(kl)), count=len(kl))
        self.verdict.codes.extend(map(Agreement.of, codes))
        self._worst("codes_agreement", self.verdict.codes)

    def _add_sequence(self, sequence: Sequence, along: Along) -> None:
        mine, theirs = self.verdict.candidate.arrays, self.verdict.own.arrays
        free, name = f"free/{sequence.name}", sequence.name
        batched = mine.get(f"batched/{name}")
        group = self.verdict.own.layout.group_size
        self.verdict.sequences.append(
            SequenceVerdict(
                sequence,
                along,
                self._pair.parting(sequence, mine[free], theirs[free]),
                batched is not None,
                None if batched is None else self._pair.parting(sequence, batched, mine[free]),
                (bool(mine[f"stopped/{name}"]), bool(theirs[f"stopped/{name}"])),
                (mine[free].shape[1] // group, theirs[free].shape[1] // group),
            )
        )

    def _answers(self) -> None:
        found = self.verdict.sequences
        greedy = [s for s in found if s.sequence.text.greedy]
        for check, some in (
            ("greedy_agreement", greedy),
            ("sampled_agreement", [s for s in found if not s.sequence.text.greedy]),
        ):
            self._share(check, (s.parting for s in some))
        stops = [
            None if s.stops[0] == s.stops[1] and s.lengths[0] == s.lengths[1] else s.parting
            for s in found
        ]
        self._share("stops_agreement", stops)
        self._share("batch_agreement", (s.batched for s in greedy if s.in_batch))

    def _share(self, check: str, partings: Iterable[Parting | None]) -> None:
        """The share of answers that do not part, or part at a near tie."""
        found = list(partings)
        good = sum(parting is None or parting.near for parting in found)
        near = sum(parting is not None and parting.near for parting in found)
        if found:
            self._check(check, good / len(found), near, len(found))

    def _worst(self, check: str, agreements: list[Agreement]) -> None:
        if agreements:
            near = sum(a.near_ties for a in agreements)
            count = sum(a.count for a in agreements)
            self._check(check, min(a.share for a in agreements), near, count)

    def _check(self, name: str, value: float, near_ties: int = 0, count: int = 0) -> None:
        threshold = self._thresholds.all[name]
        self.verdict.checks.append(
            Check(
                name,
                threshold.stage,
                threshold.title,
                value,
                threshold.unit,
                threshold.better,
                threshold.limits.get(self._precision),
                threshold.passes(value, self._precision),
                threshold.reason,
                near_ties,
                count,
            )
        )

    def _both(self, kind: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """(name, candidate's, model's) of the arrays of a kind that both have."""
        mine, theirs = self.verdict.candidate.arrays, self.verdict.own.arrays
        names = [n for n in theirs if n.startswith(f"{kind}/") and n in mine]
        return [(n.removeprefix(f"{kind}/"), mine[n], theirs[n]) for n in names]


@dataclass(frozen=True)
class Streaming:
    """What the windows cost a side: one sound streamed against the whole."""

    name: str
    snr: float  # dB
    seam_error: float | None  # dB, see `stream_quality.seam_error`


def streaming(recording: Recording) -> list[Streaming]:
    """Of every sound that was streamed."""
    found, rate = [], recording.layout.sampling_rate
    for key, streamed in recording.arrays.items():
        if key.startswith("streamed/"):
            name = key.removeprefix("streamed/")
            whole = recording.arrays[f"sound/{name}"]
            seams = recording.arrays.get(f"seams/{name}", np.zeros(0, np.int64))
            error = seam_error(streamed, whole, seams.tolist(), rate)
            found.append(Streaming(name, snr(streamed, whole), error))
    return found
