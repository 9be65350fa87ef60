"""A sentence as sound: espeak-ng, brought to 24 kHz, with a noise floor, a level and some noise."""

import io
import shutil
import subprocess
from dataclasses import dataclass

import numpy as np
import soundfile
from mimo_edge.runtime.audio.resample import resample
from mimo_edge.runtime.bundle.errors import EnvironmentProblem
from mimo_edge.scripts.nano.voices import Reading
from numpy.typing import NDArray

RATE = 24000
LEVEL = 0.07  # RMS of speech before its gain, about -23 dB of full scale
# Espeak's digital silence would be log 1e-7 in a mel and rule every loss; this is -70 dB.
FLOOR = 10 ** (-70 / 20)
TAIL = 0.16  # seconds of silence after the speech
_SILENT = 1e-3

Wav = NDArray[np.float32]  # [N] at RATE


@dataclass(frozen=True)
class Room:
    """What lies between the mouth and the microphone."""

    gain_db: float = 0.0
    snr_db: float | None = None  # white noise so far below the speech; None is the floor alone
    lead: float = 0.08  # seconds of silence before the speech


def speak(text: str, reading: Reading, room: Room = Room(), seed: int = 0) -> Wav:
    """Read `text`. The same arguments give the same sound. Raises if espeak-ng is not there."""
    wav = _trimmed(_espeak(text, reading))
    wav = np.pad(wav, (round(room.lead * RATE), round(TAIL * RATE)))
    level = LEVEL * 10 ** (room.gain_db / 20)
    speech = wav * (level / max(float(np.sqrt(np.mean(wav**2))), 1e-6))
    strength = FLOOR if room.snr_db is None else max(FLOOR, level * 10 ** (-room.snr_db / 20))
    noise = np.random.default_rng(seed).normal(0, strength, len(wav))
    return np.clip(speech + noise, -1, 1).astype(np.float32)


def _espeak(text: str, reading: Reading) -> Wav:
    if shutil.which("espeak-ng") is None:
        raise EnvironmentProblem(
            "espeak-ng is not installed; it reads the training sentences aloud."
        )
    settings = ["-v", reading.voice, "-s", str(reading.speed), "-p", str(reading.pitch)]
    command = ["espeak-ng", *settings, "--stdout", text]
    wave = subprocess.run(command, check=True, capture_output=True).stdout
    # espeak-ng cannot know the length when it writes the header of a pipe
    samples, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
    return resample(samples, rate, RATE)


def _trimmed(wav: Wav) -> Wav:
    (loud,) = np.nonzero(np.abs(wav) > _SILENT)
    return wav[loud[0] : loud[-1] + 1] if loud.size else wav
