"""A few held-out sentences to hear and to look at: espeak's reading, the codec's, nano's own."""

from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from scripts.nano import grammar
from scripts.nano.evaluate import Evaluation
from scripts.nano.speak import RATE

_FFT, _HOP, _TOP = 1024, 240, 5000  # of the spectrograms; the last in Hz

Sounds = dict[str, NDArray[np.float32]]


@torch.inference_mode()
def write_samples(checkpoint: Path, work: Path, count: int) -> list[Path]:
    """Write `work`/samples/NN-what.wav, what is said in each as NN.txt, and NN.png if it can."""
    evaluation = Evaluation(checkpoint, work, count)
    answers = {s.text: s.answer for kind in grammar.kinds() for s in grammar.sentences(kind)}
    folder = work / "samples"
    folder.mkdir(exist_ok=True)
    written: list[Path] = []
    for number, spoken in enumerate(evaluation.clips("own")):
        text, codes = spoken.clip.text, evaluation.audio.encode(spoken.wav)
        sounds: Sounds = {
            "espeak": spoken.wav.numpy(),
            "codec": evaluation.audio.decode(codes).numpy(),
        }
        read = evaluation.sampled.read_aloud(text, number)
        lines = [f"text: {text}", f"heard: {evaluation.sampled.transcribe(codes.numpy())}"]
        if read.codes.shape[1]:
            sounds["nano"] = evaluation.audio.decode(torch.from_numpy(read.codes)).numpy()
            lines.append(f"nano's reading heard back: {evaluation.hear(read.codes)}")
        if answers[text] is not None:
            reply = evaluation.sampled.reply(codes.numpy(), number)
            lines += [f"wanted: {answers[text]}", f"reply: {evaluation.sampled.text(reply)}"]
            if reply.codes.shape[1]:
                sounds["reply"] = evaluation.audio.decode(torch.from_numpy(reply.codes)).numpy()
        for what, wav in sounds.items():
            path = folder / f"{number:02}-{what}.wav"
            soundfile.write(path, wav, RATE, subtype="PCM_16")
            written.append(path)
        (folder / f"{number:02}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        _draw(sounds, text, folder / f"{number:02}.png")
    return written


def _draw(sounds: Sounds, title: str, path: Path) -> None:
    """Spectrograms one above the other; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(9, 2 * len(sounds)), layout="constrained")
    figure.suptitle(title)
    longest = max(map(len, sounds.values())) / RATE
    for axes, (what, wav) in zip(
        figure.subplots(len(sounds), 1, squeeze=False)[:, 0], sounds.items(), strict=True
    ):
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(wav, _FFT // 2), _FFT)[::_HOP]
        bins = _TOP * _FFT // RATE
        spectrum = np.abs(np.fft.rfft(frames * np.hanning(_FFT)))[:, :bins]
        axes.imshow(
            20 * np.log10(spectrum.T + 1e-3),
            origin="lower",
            aspect="auto",
            vmin=-50,
            vmax=40,
            extent=(0, len(wav) / RATE, 0, _TOP / 1000),
        )
        axes.set(xlim=(0, longest), ylabel=f"{what}, kHz")
    figure.savefig(path, dpi=100)
