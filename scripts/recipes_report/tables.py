"""The tables, as Markdown."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from mimo_edge.engines.components import COMPONENTS, TABLES
from mimo_edge.engines.weigh import Share
from mimo_edge.parity.confidence import interval
from mimo_edge.parity.precision import Choices
from mimo_edge.parity.speech_score import TASKS
from mimo_edge.scripts.progress import size
from mimo_edge.scripts.recipes_report.spoken import SOUND, SPEAKING, STREAM, WHOLE, Job
from mimo_edge.scripts.recipes_report.workshop import ALL, OWN, Figures, Subject, Workshop
from numpy.typing import NDArray


def led(count: int) -> str:
    """What figures of level 5 are called, along so many utterances of each task."""
    return f"led.{count}"


def component_table(
    subject: Subject, shares: Mapping[str, Share], workshop: Workshop, count: int
) -> Iterator[str]:
    """Level 5 of a recipe: of each component that it quantises, and of all."""
    yield f"\n{subject.name}\n"
    yield (
        "| component | bytes | state SNR | text | gate | KL text | codes drawn, by codebook | "
        "KL codes | codes heard | sound SNR |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for component in (*COMPONENTS, ALL):
        found = workshop.known(Subject(subject.recipe, component), led(count))
        if found is None:
            continue
        bytes_ = sum(s.bytes for c, s in shares.items() if component in (c, ALL))
        text, gate = Choices(**found["text"]), Choices(**found["gate"])
        codes = [Choices(**c) for c in found["codes"]]
        state = found["embeddings" if component in TABLES else "local_hidden"]["snr"]
        yield (
            f"| {component} | {size(bytes_)} | {_db(state)} | {_percent(text.agreement)} | "
            f"{_percent(gate.agreement)} | {text.kl:.1e} | "
            f"{' '.join(f'{100 * c.agreement:.1f}' for c in codes)} | "
            f"{np.mean([c.kl for c in codes]):.1e} | {_percent(float(np.mean(found['heard'])))} | "
            f"{_db(found['sound']['snr'])} |"
        )


class Draws:
    """A subject's figures of one task, all draws that are there."""

    def __init__(self, workshop: Workshop, subject: Subject, task: str, how: str) -> None:
        """`task` ALL is every task that is there, one after the other."""
        self.all: list[Figures] = []
        while True:
            tasks = TASKS if task == ALL else (task,)
            every = [Job(subject, each, how, len(self.all)) for each in tasks]
            found = [workshop.known(subject, job.what) for job in every]
            if None in found:
                break
            whole = {k: [n for f in found if f for n in f[k]] for k in found[0] or ()}
            self.all.append(whole)

    def sums(self, key: str, draws: int) -> list[int]:
        """Of each utterance, over so many draws: "words", "edits", or these "bounded" by words."""
        every = [self.all[draw] for draw in range(draws)]
        if key == "bounded":
            rows = [list(map(min, f["edits"], f["words"])) for f in every]
        else:
            rows = [f[key] for f in every]
        return [int(n) for n in np.sum(rows, axis=0)]

    def marks(self, draws: int) -> NDArray[np.float64]:
        """Of listeners [draws, utterances]; NaN where nothing was said."""
        return np.array([self.all[draw]["opinion"] for draw in range(draws)], float)

    def voices(self, draws: int) -> NDArray[np.float64]:
        """[draws, utterances, width]; NaN where nothing was said."""
        rows = [self.all[draw]["voice"] for draw in range(draws)]
        width = max(len(voice) for row in rows for voice in row if voice is not None)
        silent = [np.nan] * width
        return np.array([[silent if v is None else v for v in row] for row in rows], float)


def speech_table(subjects: Sequence[Subject], workshop: Workshop) -> Iterator[str]:
    """Words; a difference is that of the same draws. Utterances are drawn again whole, with all of
    their seeds.

    `at most all`: an utterance in which more is heard than was said counts as all wrong. One that
    goes astray is as wrong as the longest answer is long, which says nothing of a recipe.
    """
    yield (
        "\n| recipe | task | seeds | words wrong | against fp32, points | the same, at most all |"
        " streamed, seeds |"
    )
    yield "|---|---|---|---|---|---|---|"
    for subject in subjects:
        for task in (*TASKS, ALL):
            found = Draws(workshop, subject, task, WHOLE)
            if not found.all:
                continue
            draws = len(found.all)
            line = f"| {subject.name} | {task} | {draws} | {_rate(found, draws)} | "
            own = Draws(workshop, Subject(None), task, WHOLE)
            line += f"{_against(found, own)} | {_against(found, own, 'bounded')} | "
            streamed = Draws(workshop, subject, task, STREAM) if task in SPEAKING else None
            if streamed is not None and streamed.all:
                wrong, said = (streamed.sums(k, len(streamed.all)) for k in ("edits", "words"))
                line += f"{_percent(sum(wrong) / sum(said))}, {len(streamed.all)}"
                own = Draws(workshop, Subject(None), task, STREAM)
                gap = _against(streamed, own, "bounded")
                line += f": {gap}" if gap else ""
            yield f"{line} |"


def _rate(found: Draws, draws: int) -> str:
    edits, said = found.sums("edits", draws), found.sums("words", draws)
    low, high = interval(edits, said)
    return (
        f"{sum(edits)} of {sum(said)}, {_percent(sum(edits) / sum(said))} "
        f"({100 * low:.1f} to {100 * high:.1f})"
    )


def _against(found: Draws, own: Draws, kind: str = "edits") -> str:
    """Points that are lost against the float model's same draws; nothing for itself."""
    draws = min(len(found.all), len(own.all))
    if not draws or found.all == own.all:
        return ""
    gap = np.subtract(found.sums(kind, draws), own.sums(kind, draws)).tolist()
    said = own.sums("words", draws)
    less, more = interval(gap, said)
    return f"{100 * sum(gap) / sum(said):+.2f} ({100 * less:+.2f} to {100 * more:+.2f})"


def sound_table(subjects: Sequence[Subject], workshop: Workshop) -> Iterator[str]:
    """What is spoken, against what the float model spoke of the same text by the same seed.

    For scale: how like the float model's voice is to its own, by the seed of the next draw.
    """
    yield "\n| recipe | task | seeds | opinion, 1 to 5 | against fp32 | voice like fp32's |"
    yield "|---|---|---|---|---|---|"
    for subject in subjects:
        for task in SPEAKING:
            found, own = (Draws(workshop, s, task, SOUND) for s in (subject, Subject(None)))
            draws = min(len(found.all), len(own.all))
            if not draws:
                continue
            marks, others = found.marks(draws), own.marks(draws)
            line = f"| {subject.name} | {task} | {draws} | {np.nanmean(marks):.2f} | "
            if subject.name == OWN:
                line += "| "
                if draws > 1:
                    like = float(np.nanmean(_likeness(found, own, draws, 1)))
                    line += f"{like:.3f} from seed to seed"
            else:
                both = np.isfinite(marks) & np.isfinite(others)  # where both said something
                gap = np.where(both, marks - others, 0).sum(0)
                count = both.sum(0)
                spoke = count > 0
                less, more = interval(gap[spoke].tolist(), count[spoke].tolist())
                line += f"{gap.sum() / count.sum():+.3f} ({less:+.3f} to {more:+.3f}) | "
                line += f"{float(np.nanmean(_likeness(found, own, draws, 0))):.3f}"
            yield f"{line} |"


def _likeness(found: Draws, own: Draws, draws: int, later: int) -> NDArray[np.float64]:
    """Of voices [draws, utterances], to those of a later draw; NaN where one of them is silent."""
    one, other = found.voices(draws), np.roll(own.voices(draws), -later, axis=0)
    likeness: NDArray[np.float64] = (one * other).sum(-1)
    return likeness


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _db(value: float) -> str:
    return "equal" if value == float("inf") else f"{value:.1f} dB"
