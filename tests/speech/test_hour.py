"""An hour of speech through one stream of the codec: memory stays, and so does the sound."""

from collections import deque
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.parity.speech_score import LONGEST, Judge, UtteranceSet
from mimo_edge.parity.tolerances import speech_edits
from mimo_edge.parity.word_errors import WordErrors
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio

HOUR = 3600  # seconds
CHUNK = 24  # frames


def resident() -> int:
    """Bytes that this process holds."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


@pytest.mark.slow
def test_an_hour(nano: MimoAudio, utterances: UtteranceSet) -> None:
    """What nano says, over and over without a pause. The last round is heard as the first is."""
    model = nano.backend.bundle.model
    spoken = [
        (text, nano.tts(text, options=Options(seed=seed, max_new=LONGEST)).result().codes)
        for seed, text in enumerate(utterances.tts)
    ]
    codes = np.concatenate([said for _, said in spoken], axis=1)
    frames = codes.shape[1]
    samples = frames * model.samples_per_frame
    rounds = -(-HOUR * model.sampling_rate // samples)
    decoder = codec.open_stream(nano.backend)
    newest: deque[np.ndarray] = deque(maxlen=2)  # rounds
    first, held = np.zeros(0, np.float32), 0
    for count in range(rounds):
        starts = range(0, frames, CHUNK)
        newest.append(np.concatenate([decoder.push(codes[:, t : t + CHUNK]) for t in starts]))
        if count == 1:
            first = np.concatenate(newest)[:samples]
        if count == 2:  # everything that will ever be allocated has been
            held = resident()
    grown = resident() - held
    last = np.concatenate((*newest, decoder.finish()))[-samples:]
    decoder.close()

    # allocators are not exact; a stream that kept its states would hold more than 10 times as much
    kept_otherwise = (rounds - 3) * frames * 4 * model.n_mels * 4
    assert grown < kept_otherwise / 10, f"{grown / 1e6:.1f} MB more after an hour"

    judge, heard = Judge(nano), []
    for wav in (first, last):
        errors, position = WordErrors(), 0
        for text, said in spoken:
            count = said.shape[1] * model.samples_per_frame
            errors.add(judge.transcribe(wav[position : position + count]), text)
            position += count
        heard.append(errors)
    assert heard[1].edits <= speech_edits(heard[0].edits, heard[0].words), heard
