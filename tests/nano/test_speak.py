"""Readings: repeatable, at their level, and never digitally silent."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.scripts.nano import data
from mimo_edge.scripts.nano.speak import (
    FLOOR,
    LEVEL,
    RATE,
    Room,
    speak,
)
from mimo_edge.scripts.nano.voices import OWN, SEEN


def test_the_same_arguments_give_the_same_sound() -> None:
    first, again = (speak("Turn on the light.", OWN, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.float32
    assert RATE / 2 < len(first) < 3 * RATE


def test_silence_is_noise_at_the_floor_and_speech_is_at_its_level() -> None:
    wav = speak("The sky is blue.", OWN)
    quiet = np.sqrt(np.mean(wav[: RATE // 20] ** 2))
    assert 0.8 * FLOOR < quiet < 1.25 * FLOOR
    assert 0.9 * LEVEL < np.sqrt(np.mean(wav**2)) < 1.1 * LEVEL
    softer = speak("The sky is blue.", OWN, Room(gain_db=-6))
    assert np.sqrt(np.mean(softer**2)) == pytest.approx(LEVEL / 2, rel=0.05)


def test_every_voice_is_there_and_its_own() -> None:
    wavs = [speak("One.", replace(OWN, voice=voice)) for voice in SEEN]
    assert len({wav.tobytes() for wav in wavs}) == len(SEEN)


def test_shards_hold_the_plan_and_an_interrupted_build_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "SHARD", 8)
    plan = data.Plan(sentences=4, held_out=2, readings=1, loose=1, own_loose=2)
    data.build(tmp_path, plan)
    paths = data.shards(tmp_path)
    before = [path.read_bytes() for path in paths]
    assert [clip for path in paths for clip, _ in data.read_shard(path)] == data.clips(plan)
    paths[0].unlink()
    data.build(tmp_path, plan)
    assert [path.read_bytes() for path in paths] == before
    with pytest.raises(ValueError, match="another plan"):
        data.build(tmp_path, replace(plan, seed=2))
