"""Who reads: espeak-ng voices, and how fast and high. One voice is never trained on."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """One way to read a sentence."""

    voice: str  # espeak-ng's name, with its variant
    speed: int  # words a minute
    pitch: int  # 0 .. 99


# The voice that nano itself has: all that it learns to say is read so.
OWN = Reading("en-us", 160, 50)
SEEN = ("en-us", "en-gb+f2", "en-gb-x-rp+m3", "en-us+f4")
HELD_OUT = "en-us+m1"


def draw(rng: random.Random, voice: str | None = None) -> Reading:
    """A reading by one of the seen voices, or by `voice`, at its own speed and pitch."""
    return Reading(voice or rng.choice(SEEN), rng.randint(140, 190), rng.randint(35, 65))
