"""Parts of the server that need no model: speech activity, buffers, encoders, cut histories."""

import io

import numpy as np
import pytest
import soundfile
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.formats import MEDIA_TYPES, open_encoder
from mimo_edge.runtime.server.realtime_config import Session
from mimo_edge.runtime.server.realtime_conversation import cut_answer
from mimo_edge.runtime.server.realtime_input import InputBuffer
from mimo_edge.runtime.server.subtitles import pieces
from mimo_edge.runtime.server.telephone import LAWS
from mimo_edge.runtime.server.voice_activity import VoiceActivity, stretches

from tests.bundles import ROOT

RATE = 24000
CLIPS = sorted((ROOT / "assets" / "clips").glob("*.flac"))


def noise(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal(round(seconds * RATE))).astype(np.float32)


def speech(seconds: float = 1.0) -> np.ndarray:
    """Bursts of sound, as loud as speech."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.2 * np.sin(2 * np.pi * 180 * time) * (0.6 + 0.4 * np.sin(20 * time))).astype("f4")


@pytest.mark.parametrize("level", [0.0, 0.001, 0.01])
@pytest.mark.parametrize("step", [100, 2400, 10**6])
def test_speech_is_found_in_quiet_and_in_noise(level: float, step: int) -> None:
    wav = noise(4.0, level)
    wav[RATE : 2 * RATE] += speech()
    activity, found = VoiceActivity(RATE), []
    for start in range(0, len(wav), step):
        found += activity.feed(wav[start : start + step])
    assert len(found) == 2 and found[0].stop is None and found[1].start == found[0].start
    assert abs(found[1].start - RATE) <= 0.1 * RATE
    assert found[1].stop is not None and abs(found[1].stop - 2 * RATE) <= 0.1 * RATE


def test_noise_alone_is_no_speech_and_a_click_neither() -> None:
    wav = noise(6.0, 0.01)
    wav[3 * RATE : 3 * RATE + 200] = 0.9
    assert VoiceActivity(RATE).feed(wav) == []


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
def test_real_speech_is_found(clip: object) -> None:
    wav = load_audio(str(clip))
    found = stretches(np.concatenate((noise(1, 0.0005), wav, noise(1, 0.0005))), RATE)
    first, last = found[0].start, found[-1].stop
    assert last is not None
    assert 0.8 * RATE < first < 1.6 * RATE and last > RATE + len(wav) // 2


def test_a_turn_has_what_belongs_to_it() -> None:
    buffer = InputBuffer(Session(), RATE, 60)
    wav = np.concatenate((noise(5, 0.0003), speech(), noise(2, 0.0003)))
    pcm = np.rint(wav * 32767).astype("<i2")
    turns = []
    for start in range(0, len(pcm), 1000):
        turns += buffer.append(pcm[start : start + 1000].tobytes())
        assert buffer.seconds < 3, "silence is not kept"
    began, ended = turns
    assert began.wav is None and began.at == pytest.approx(5, abs=0.1)
    assert ended.wav is not None and ended.at == pytest.approx(6, abs=0.1)
    assert 1.3 < len(ended.wav) / RATE < 1.7  # 0.3 s before, 0.2 s after
    at = round((began.at - 0.3) * RATE)
    assert np.abs(ended.wav - pcm[at : at + len(ended.wav)] / 32768).max() < 1e-6


def test_who_never_stops_speaking_is_cut() -> None:
    buffer = InputBuffer(Session(), RATE, 2)
    pcm = np.rint(speech(5) * 32767).astype("<i2")
    turns = []
    for start in range(0, len(pcm), 2400):
        turns += buffer.append(pcm[start : start + 2400].tobytes())
    whole = [turn.wav for turn in turns if turn.wav is not None]
    assert len(whole) == 2 and all(len(wav) <= 2.2 * RATE for wav in whole)


def test_a_buffer_by_hand_is_bounded() -> None:
    by_hand = Session.parsed({"audio": {"input": {"turn_detection": None}}})
    buffer = InputBuffer(by_hand, RATE, 1)
    with pytest.raises(RequestError, match="0 ms of audio"):
        buffer.take()
    with pytest.raises(RequestError, match="whole samples"):
        buffer.append(b"123")
    assert buffer.append(bytes(RATE)) == [] and buffer.seconds == 0.5
    with pytest.raises(RequestError, match="1 s at most"):
        buffer.append(bytes(3 * RATE))
    assert buffer.seconds == 0


def test_settings_are_changed_one_by_one() -> None:
    vad = {"type": "server_vad", "silence_duration_ms": 200}
    changed = Session().updated({"audio": {"input": {"turn_detection": vad}}})
    detection = changed.audio.input.turn_detection
    assert detection is not None and detection.type == "server_vad"
    assert (detection.silence_duration_ms, detection.threshold) == (200, 0.5)
    semantic = {"type": "semantic_vad", "eagerness": "low"}
    changed = changed.updated({"audio": {"input": {"turn_detection": semantic}}})
    assert changed.audio.input.turn_detection is not None
    assert changed.audio.input.turn_detection.type == "semantic_vad"
    none = changed.updated({"audio": {"input": {"turn_detection": None}}, "instructions": "a"})
    assert none.activity(RATE) is None and none.instructions == "a"
    with pytest.raises(RequestError, match=r"session\.audio\.input\.format"):
        none.updated({"audio": {"input": {"format": {"type": "audio/mpeg"}}}})


def test_a_recording_is_cut_in_its_pauses() -> None:
    wav = np.concatenate((noise(1, 0), speech(), noise(2, 0), speech(0.5), noise(1, 0)))
    first, second = pieces(wav, RATE)
    assert (first.start, first.stop) == pytest.approx((1, 2), abs=0.1)
    assert (second.start, second.stop) == pytest.approx((4, 4.5), abs=0.1)
    assert len(first.wav) == pytest.approx(1.6 * RATE, abs=0.15 * RATE)
    (whole,) = pieces(wav[: 2 * RATE], RATE)
    assert len(whole.wav) == 2 * RATE, "with one stretch nothing is cut away"
    long = pieces(speech(70), RATE)
    assert [len(piece.wav) for piece in long] == [560000] * 3, "30 s at most"


@pytest.mark.parametrize("form", MEDIA_TYPES)
@pytest.mark.parametrize("seconds", [0.0, 0.03, 1.0])
def test_an_encoder_makes_a_file(form: str, seconds: float) -> None:
    wav, encoder = speech(seconds), open_encoder(form, RATE)
    data = b"".join(encoder.push(part) for part in np.array_split(wav, 7)) + encoder.finish()
    if form == "pcm":
        assert len(data) == 2 * len(wav)
    elif seconds == 1.0:
        heard = load_audio(data)
        assert abs(len(heard) - len(wav)) < 3000
        if form in ("wav", "flac"):
            assert np.abs(heard - wav).max() <= 1 / 32768
    else:
        assert len(data) > 40, "a header is there"


@pytest.mark.parametrize(("law", "subtype"), [("pcmu", "ULAW"), ("pcma", "ALAW")])
def test_a_telephone_is_the_standards(law: str, subtype: str) -> None:
    """libsndfile decodes each code to the same level, and codes no sample nearer."""
    codec, codes = LAWS[f"audio/{law}"], bytes(range(256))
    raw = {"samplerate": 8000, "channels": 1, "format": "RAW", "subtype": subtype}
    levels = soundfile.read(io.BytesIO(codes), dtype="float32", **raw)[0]
    assert (codec.decode(codes) == levels).all()
    samples = np.arange(-32768, 32768).astype(np.int16)
    target = io.BytesIO()
    with soundfile.SoundFile(target, "w", **raw) as file:
        file.write(samples)
    theirs = codec.decode(target.getvalue())
    ours = codec.decode(codec.encode(samples.astype("f4") / 32768))
    wav = samples / 32768
    assert (np.abs(ours - wav) <= np.abs(theirs - wav)).all()
    assert (ours == theirs).mean() > 0.99, "but for ties"


def test_what_was_not_heard_is_cut_from_the_history() -> None:
    text = np.array([1, 2, 9, 9, 3, 9, 9, 8])  # 9 stands for speech; the answer begins at patch 1
    codes = np.arange(16).reshape(2, 8)
    grid = np.repeat(np.concatenate((text[None], codes)), 4, axis=1)
    settings = {"empty": 9, "end": 7, "empty_codes": (50, 60), "group_size": 4}
    cut = cut_answer(grid, 1, 3, **settings)  # type: ignore[arg-type]
    assert cut[0, ::4].tolist() == [1, 2, 9, 9, 3, 9, 7]
    assert cut[1:, ::4].tolist() == [[0, 1, 2, 3, 4, 5, 50], [8, 9, 10, 11, 12, 13, 60]]
    assert cut.shape == (3, 28)
    for heard in (4, 99):
        assert cut_answer(grid, 1, heard, **settings) is grid  # type: ignore[arg-type]
