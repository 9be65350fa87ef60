"""Word errors as checks of the report: what a build says and hears, on utterances whose words are
known."""

from collections.abc import Mapping

from mimo_edge.parity.judge import Check
from mimo_edge.parity.sound_checks import Heard
from mimo_edge.parity.speech_score import Judge, UtteranceSet, totals
from mimo_edge.parity.tolerances import SPEECH_DEVIATIONS, SPEECH_POINTS, speech_edits
from mimo_edge.parity.word_errors import WordErrors
from mimo_edge.runtime.backends.base import Backend
from mimo_edge.runtime.tasks import MimoAudio

TITLES = {
    "asr": "word errors of recordings that it transcribes",
    "tts": "word errors of texts that it reads aloud, heard back by itself",
    "dialogue": "word errors of its spoken answers, heard back by itself",
}
REASON = (
    f"{100 * SPEECH_POINTS:g} points more than the model's own, or {SPEECH_DEVIATIONS:g} times the "
    "root of its errors if that is more: speech is drawn, and the least rounding makes other draws"
)


def word_errors(
    backend: Backend, utterances: UtteranceSet, heard: Heard | None = None
) -> dict[str, WordErrors]:
    """Task -> word errors; utterance i draws by seed i. What is spoken is heard by `heard`, too. A
    bundle that only listens is given no texts to read and nothing to answer."""
    if not backend.bundle.speaks:
        utterances = UtteranceSet(asr=utterances.asr)
    model = MimoAudio(backend)
    try:
        verdicts = Judge(model).all(utterances)
        return totals(verdicts if heard is None else heard.listen(verdicts, model.sampling_rate))
    finally:
        model.scheduler.close()


def word_checks(
    score: Mapping[str, WordErrors], own: Mapping[str, WordErrors] | None
) -> list[Check]:
    """One check a task; without the model's own errors they are measured and not judged."""
    found = []
    for task, errors in score.items():
        limit = None
        if own is not None and task in own:
            limit = speech_edits(own[task].edits, own[task].words) / own[task].words
        found.append(
            Check(
                name=f"words_{task}",
                stage="speech",
                title=TITLES[task],
                value=errors.rate,
                unit="of 1",
                better="lower",
                limit=limit,
                passed=None if limit is None else errors.rate <= limit,
                reason=REASON,
                count=errors.words,
            )
        )
    return found
