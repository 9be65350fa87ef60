"""Mutated sound files of every container: heard or refused, never anything else."""

import random
import resource
import time

import numpy as np
import pytest
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.bundle.errors import AudioError

from tests.sounds import encoded, speech
from tests.test_audio_faults import CONTAINERS

MAX_SECONDS = 20


@pytest.fixture(scope="module")
def sounds() -> list[bytes]:
    """Half a second in every container, mono, stereo and 5.1 where it can hold that."""
    wav, files = speech()[12000:24000], []
    for format, subtype in CONTAINERS:
        for channels in (1, 2, 6):
            if channels <= (2 if format == "MP3" or subtype == "IMA_ADPCM" else 6):
                many = np.stack([wav] * channels, axis=1)
                files.append(encoded(many, 24000, format, subtype))
    return files


def mutated(rng: random.Random, sounds: list[bytes]) -> bytes:
    """One to four changes: most in the first bytes, where the headers are."""
    data = bytearray(rng.choice(sounds))
    for _ in range(rng.randint(1, 4)):
        reach = len(data) if rng.random() < 0.4 else min(len(data), 200)
        at = rng.randrange(max(1, reach))
        what = rng.randrange(7)
        if what == 0:
            data[at : at + 1] = rng.randbytes(1)
        elif what == 1 and len(data):
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif what == 2:  # a length or a count of a kind that hurts
            number = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000, len(data)))
            data[at : at + 4] = number.to_bytes(4, rng.choice(("little", "big")))
        elif what == 3:
            del data[at:]
        elif what == 4:
            del data[at : at + rng.randint(1, 300)]
        elif what == 5:
            data[at:at] = rng.randbytes(rng.randint(1, 300))
        else:
            other = rng.choice(sounds)
            data += other[rng.randrange(len(other)) :]
    return bytes(data)


def fuzz(sounds: list[bytes], seed: int, count: int) -> tuple[int, int]:
    """(heard, refused). A failure names the seed, of which the input can be made again."""
    heard = 0
    for number in range(count):
        data = mutated(random.Random(f"{seed} {number}"), sounds)
        try:
            wav = load_audio(data, max_seconds=MAX_SECONDS)
        except AudioError as error:
            assert str(error).startswith("the audio given as bytes"), error
            continue
        except BaseException as error:
            raise AssertionError(f"input {seed} {number}") from error
        heard += 1
        assert wav.ndim == 1 and wav.dtype == np.float32 and np.isfinite(wav).all()
        assert wav.shape[0] <= MAX_SECONDS * 24000 + 1, f"input {seed} {number}"
    return heard, count - heard


def test_some(sounds: list[bytes], capfd: pytest.CaptureFixture[str]) -> None:
    heard, refused = fuzz(sounds, seed=1, count=400)
    assert heard > 20 and refused > 100
    assert capfd.readouterr() == ("", "")  # no library speaks for itself


@pytest.mark.slow
def test_many(sounds: list[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    fuzz(sounds, seed=2, count=200)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    heard, refused = fuzz(sounds, seed=3, count=20_000)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with capsys.disabled():
        print(
            f"\n{heard} heard, {refused} refused in {time.monotonic() - began:.0f} s; "
            f"peak {peak >> 10} MiB, {before >> 10} MiB after the first 200"
        )
    assert peak - before < 200 << 10  # KiB: no input is larger than 300 kB
