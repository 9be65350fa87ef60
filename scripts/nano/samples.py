"""A few held-out sentences to hear and to look at: espeak's reading, the codec's, nano's own."""

from pathlib import Path

import numpy as np
from mimo_edge.parity.spectrogram import draw
from mimo_edge.parity.speech_score import Judge, Utterance
from mimo_edge.runtime.audio.write import write_audio
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.nano import grammar
from mimo_edge.scripts.nano.evaluate import (
    DEPTHS,
    Evaluation,
    Spoken,
    export,
)
from numpy.typing import NDArray

Sounds = dict[str, NDArray[np.float32]]


def write_samples(checkpoint: Path, work: Path, count: int) -> list[Path]:
    """Write `work`/samples/NN-what.flac, what is said in each as NN.txt, and NN.png if it can."""
    sentences = grammar.by_text()
    folder = work / "samples"
    folder.mkdir(exist_ok=True)
    written: list[Path] = []
    with MimoAudio.open(export(checkpoint, work)) as model:
        evaluation = Evaluation(model, work, count)
        for number, spoken in enumerate(evaluation.clips("own")):
            sounds, lines = _sample(evaluation.judge, spoken, sentences[spoken.clip.text].answer)
            for what, wav in sounds.items():
                path = folder / f"{number:02}-{what}.flac"
                write_audio(path, wav, model.sampling_rate)
                written.append(path)
            text = "\n".join(lines) + "\n"
            (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
            title = spoken.clip.text
            draw(sounds, model.sampling_rate, folder / f"{number:02}.png", title)
    return written


def _sample(judge: Judge, spoken: Spoken, answer: str | None) -> tuple[Sounds, list[str]]:
    """The sounds of one sentence by name, and what is said in them."""
    wav, text = spoken.wav, spoken.clip.text
    sounds: Sounds = {"espeak": wav, "codec": judge.reconstruct(wav, DEPTHS[-1])}
    (read,) = judge.tts([text])
    lines = [f"text: {text}", f"heard: {judge.transcribe(wav)}", f"nano, heard back: {read.heard}"]
    spoken_by = {"nano": read}
    if answer is not None:
        (reply,) = judge.dialogue([Utterance(wav, answer)])
        spoken_by["reply"] = reply
        lines += [f"wanted: {answer}", f"reply, heard back: {reply.heard}"]
    for name, verdict in spoken_by.items():
        if verdict.wav is not None:
            sounds[name] = verdict.wav
    return sounds, lines
