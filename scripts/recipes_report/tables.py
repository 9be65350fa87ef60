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
        self.all: dict[int, Figures] = {}
        while True:
            job = Job(subject, task, how, len(self.all))
            found = workshop.known(subject, job.what)
            if found is None:
                break
            self.all[job.draw] = found

    def sums(self, key: str, draws: int) -> list[int]:
        """Of each utterance, over so many draws."""
        rows = [self.all[draw][key] for draw in range(draws)]
        return [int(n) for n in np.sum(rows, axis=0)]


def speech_table(subjects: Sequence[Subject], workshop: Workshop) -> Iterator[str]:
    """Words; a difference is that of the same draws. Utterances are drawn again whole, with all of
    their seeds."""
    yield "\n| recipe | task | seeds | words wrong | against fp32, points | streamed, seeds |"
    yield "|---|---|---|---|---|---|"
    for subject in subjects:
        for task in TASKS:
            found = Draws(workshop, subject, task, WHOLE)
            if not found.all:
                continue
            draws = len(found.all)
            line = f"| {subject.name} | {task} | {draws} | {_rate(found, draws)} | "
            line += f"{_against(found, Draws(workshop, Subject(None), task, WHOLE))} | "
            streamed = Draws(workshop, subject, task, STREAM) if task in SPEAKING else None
            if streamed is not None and streamed.all:
                wrong, said = (streamed.sums(k, len(streamed.all)) for k in ("edits", "words"))
                line += f"{_percent(sum(wrong) / sum(said))}, {len(streamed.all)}"
                gap = _against(streamed, Draws(workshop, Subject(None), task, STREAM))
                line += f": {gap}" if gap else ""
            yield f"{line} |"


def _rate(found: Draws, draws: int) -> str:
    edits, said = found.sums("edits", draws), found.sums("words", draws)
    low, high = interval(edits, said)
    return (
        f"{sum(edits)} of {sum(said)}, {_percent(sum(edits) / sum(said))} "
        f"({100 * low:.1f} to {100 * high:.1f})"
    )


def _against(found: Draws, own: Draws) -> str:
    """Points that are lost against the float model's same draws; nothing for itself."""
    draws = min(len(found.all), len(own.all))
    if not draws or found.all == own.all:
        return ""
    gap = np.subtract(found.sums("edits", draws), own.sums("edits", draws)).tolist()
    said = own.sums("words", draws)
    less, more = interval(gap, said)
    return f"{100 * sum(gap) / sum(said):+.2f} ({100 * less:+.2f} to {100 * more:+.2f})"


def sound_table(subjects: Sequence[Subject], workshop: Workshop) -> Iterator[str]:
    """What is spoken, against what the float model spoke of the same text by the same seed.

    For scale: how like the float model's own voice is from one seed to the next.
    """
    yield "\n| recipe | task | seeds | opinion, 1 to 5 | against fp32 | voice like fp32's |"
    yield "|---|---|---|---|---|---|"
    for subject in subjects:
        for task in SPEAKING:
            found, own = (Draws(workshop, s, task, SOUND).all for s in (subject, Subject(None)))
            draws = min(len(found), len(own))
            if not draws:
                continue
            shift = draws > 1 and subject.name == OWN  # of itself, the next draw is what to compare
            marks: list[list[float]] = []  # of each utterance: sums over draws, and how many
            like: list[float] = []
            for number in range(len(found[0]["opinion"])):
                gap, count, total = 0.0, 0, 0.0
                for draw in range(draws):
                    other = own[(draw + shift) % draws]
                    mine, theirs = (f["opinion"][number] for f in (found[draw], other))
                    if mine is None or theirs is None:
                        continue
                    gap, count, total = gap + mine - theirs, count + 1, total + mine
                    voices = (f["voice"][number] for f in (found[draw], other))
                    like.append(float(np.dot(*voices)))
                if count:
                    marks.append([gap, count, total])
            gaps, counts, totals = (list(column) for column in zip(*marks, strict=True))
            line = f"| {subject.name} | {task} | {draws} | {sum(totals) / sum(counts):.2f} | "
            if subject.name != OWN:
                less, more = interval(gaps, [int(n) for n in counts])
                line += f"{sum(gaps) / sum(counts):+.3f} ({less:+.3f} to {more:+.3f})"
            own_voice = subject.name == OWN and not shift
            line += " | " + ("" if own_voice else f"{np.mean(like):.3f}")
            yield f"{line}{', from seed to seed' if shift else ''} |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _db(value: float) -> str:
    return "equal" if value == float("inf") else f"{value:.1f} dB"
