"""Words and sound of recipes, by several draws of the same utterances.

Speech is drawn, so one draw of two equally good builds differs by chance. With K draws every
utterance is said K times by seeds of its own, the same for all builds.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mimo_edge.parity.sound_quality import Opinion, Voice
from mimo_edge.parity.speech_score import TASKS, Judge, Streaming, UtteranceSet, Verdict
from mimo_edge.parity.word_errors import words
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.progress import StageProgress
from mimo_edge.scripts.recipes_report.workshop import Figures, Subject, Workshop

STREAMED = Streaming()  # as `run --stream` does
WHOLE, STREAM, SOUND = "whole", "streamed", "sound"
SPEAKING = ("tts", "dialogue")
APART = 1 << 16  # seeds of a draw
TOGETHER = 8  # utterances that share steps


@dataclass(frozen=True)
class Job:
    """One task of one subject, all utterances by the seeds of one draw."""

    subject: Subject
    task: str
    how: str  # WHOLE or STREAM for words, SOUND for what listeners would say, and the voice
    draw: int

    @property
    def what(self) -> str:
        """For the file of its figures."""
        return f"{self.task}.{self.how}.{self.draw}"

    def run(
        self, bundle: Path, utterances: UtteranceSet, on_progress: Callable[[], None]
    ) -> Figures:
        """Edits and words of every utterance; of sound, marks and voices (None where none is).

        `on_progress` is called after each.
        """
        found: Figures = {"edits": [], "words": []}
        if self.how == SOUND:
            found |= {"opinion": [], "voice": []}
        opinion, voice = Opinion(), Voice()
        every = getattr(utterances, self.task)

        def judge(number: int) -> Verdict:
            streaming = STREAMED if self.how == STREAM else None
            alone = UtteranceSet(**{self.task: every[number : number + 1]})
            one = Judge(model, streaming, self.draw * APART + number).task(self.task, alone)
            return next(one)

        with (
            MimoAudio.open(bundle, threads=1, slots=TOGETHER, verify=False) as model,
            ThreadPoolExecutor(TOGETHER) as pool,
        ):
            for verdict in pool.map(judge, range(len(every))):
                found["edits"].append(verdict.edits)
                found["words"].append(len(words(verdict.wanted)))
                if self.how == SOUND:
                    wav, rate = verdict.wav, model.sampling_rate
                    heard = None if wav is None else opinion.of(wav, rate)
                    whose = None if wav is None else voice.of(wav, rate).round(4).tolist()
                    found["opinion"].append(heard)
                    found["voice"].append(whose)
                on_progress()
        return found


def jobs(subjects: Sequence[Subject], draws: dict[str, int]) -> list[Job]:
    """All, a draw of every subject before the next draw: what is there at any time compares, and
    the time that is left can be told. `draws` says how many by WHOLE, STREAM, SOUND."""
    found = []
    for draw in range(max(draws.values(), default=0)):
        for how, count in draws.items():
            tasks = TASKS if how == WHOLE else SPEAKING
            if draw < count:
                found += [Job(s, task, how, draw) for s in subjects for task in tasks]
    return found


def run(
    found: Sequence[Job], workshop: Workshop, utterances: UtteranceSet, progress: StageProgress
) -> None:
    """Those whose figures are not there."""
    left = [job for job in found if workshop.known(job.subject, job.what) is None]
    total = sum(len(getattr(utterances, job.task)) for job in left)
    done = 0

    def one() -> None:
        nonlocal done
        done += 1
        progress.report("speaking and listening", done, total, "utterances")

    for job in left:
        bundle = workshop.bundle(job.subject)
        workshop.figures(job.subject, job.what, lambda j=job, b=bundle: j.run(b, utterances, one))  # type: ignore[misc]
