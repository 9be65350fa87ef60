"""A player in thought, the chunks that are made for it, and players that the system has."""

import stat
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.runtime.audio.overlap import OverlapAdd
from mimo_edge.runtime.audio.pacing import MOST_PATCHES, GrowingChunks, rehearse
from mimo_edge.runtime.audio.play import BothSinks, SystemPlayer
from mimo_edge.runtime.audio.player import Player
from mimo_edge.runtime.audio.write import open_sink
from mimo_edge.runtime.bundle.errors import AudioError, EnvironmentProblem

PATCH = 0.16  # seconds of speech


def test_player_counts_silences() -> None:
    player = Player(started=10.0)
    player.give(10.1, 0.0)
    assert player.time_to_first_sound is None and player.ahead(10.2) == 0.0
    player.give(10.5, 1.0)  # plays until 11.5
    assert player.ahead(11.0) == pytest.approx(0.5)
    player.give(11.0, 0.5)  # until 12.0
    assert player.underruns == []
    player.give(12.25, 1.0)
    player.give(12.5, 1.0)
    player.give(15.0, 1.0)
    assert player.time_to_first_sound == pytest.approx(0.5)
    assert player.underruns == pytest.approx([0.25, 0.75])
    assert player.silence == pytest.approx(1.0)


def simulate(patch: float, call: float, frame: float, patches: int) -> tuple[Player, list[int]]:
    """A stream whose patches take `patch` seconds, and whose decodes take `call` and `frame` for
    each patch; sound is one patch behind, as a block and its lookahead are."""
    sizes: list[int] = []

    def decode(count: int, taken: int) -> tuple[float, float]:
        sizes.append(count)
        sounding = max(0, taken + count - 1) - max(0, taken - 1)
        return call + frame * count, PATCH * sounding

    return rehearse(GrowingChunks(), patches, patch, decode), sizes


def test_fast_machines_grow_their_chunks_and_never_starve() -> None:
    player, sizes = simulate(0.01, 0.01, 0.005, 100)
    assert sizes[:2] == [1, 1] and sizes[-1] == MOST_PATCHES
    assert not player.underruns


@pytest.mark.parametrize("speed", [0.5, 0.7, 0.85])
def test_chunks_grow_no_faster_than_playback_allows(speed: float) -> None:
    """Slower than that, and a chunk of several patches would starve the player."""
    call = 0.01
    player, sizes = simulate(speed * PATCH - call - 0.001, call, 0.001, 200)
    assert not player.underruns
    assert sizes[0] == 1 and max(sizes) > 1


def test_a_machine_that_is_too_slow_takes_every_patch_at_once() -> None:
    player, sizes = simulate(1.2 * PATCH, 0.01, 0.001, 50)
    assert set(sizes) == {1} and player.underruns


@pytest.mark.parametrize("cuts", [[12], [1] * 12, [5, 0, 7], [2, 9, 1]])
def test_overlap_add_has_no_seams(cuts: list[int]) -> None:
    """Pieces equal the whole, which is frames summed in one go and divided by the windows."""
    n_fft, hop, rng = 32, 8, np.random.default_rng(0)
    window = np.hanning(n_fft + 1)[:-1].astype(np.float32)
    frames = rng.normal(size=(12, n_fft)).astype(np.float32) * window
    total, weight = np.zeros((2, 11 * hop + n_fft))
    for t, frame in enumerate(frames):
        total[t * hop : t * hop + n_fft] += frame
        weight[t * hop : t * hop + n_fft] += window**2
    edge = (n_fft - hop) // 2
    expected = (total / np.maximum(weight, 1e-11))[edge:-edge]
    overlap, parts, start = OverlapAdd(n_fft, hop), [], 0
    for cut in cuts:
        parts.append(overlap.push(frames[start : start + cut], window**2))
        start += cut
    parts.append(overlap.finish())
    wav = np.concatenate(parts)
    assert len(wav) == 12 * hop == len(expected)
    np.testing.assert_allclose(wav, expected, atol=1e-5)


def install(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it but what a test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_played_samples_arrive(programs: Path, tmp_path: Path) -> None:
    """The first player there is gets them all, and the file beside it has the same."""
    install(programs, "aplay", f'echo "$@" > {tmp_path}/arguments; exec /bin/cat > {tmp_path}/raw')
    wav = np.linspace(-1.5, 1.5, 5000, dtype=np.float32)
    player = SystemPlayer(24000)
    with BothSinks(open_sink(tmp_path / "a.wav", 24000), player) as sink:
        sink.write(wav[:1000])
        sink.write(wav[1000:])
    heard = np.frombuffer((tmp_path / "raw").read_bytes(), "<i2")
    expected = np.clip(np.rint(wav * 32768), -32768, 32767)
    np.testing.assert_array_equal(heard, expected)
    assert (tmp_path / "arguments").read_text().split()[-2:] == ["-r", "24000"]
    written = (tmp_path / "a.wav").read_bytes()
    assert written.endswith(expected.astype("<i2").tobytes())


def test_no_player(programs: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"ffplay comes with ffmpeg.* -o FILE"):
        SystemPlayer(24000)


def test_a_player_that_fails_says_why(programs: Path) -> None:
    install(programs, "paplay", "/bin/cat > /dev/null; echo no sound card >&2; exit 1")
    with pytest.raises(EnvironmentProblem, match="paplay stopped playing: no sound card"):  # noqa: SIM117
        with SystemPlayer(24000) as player:
            player.write(np.zeros(10, np.float32))


def test_a_player_that_dies_while_it_plays(programs: Path) -> None:
    install(programs, "paplay", "echo unplugged >&2; exit 1")
    with pytest.raises(EnvironmentProblem, match="unplugged"), SystemPlayer(24000) as player:
        for _ in range(200):  # more than a pipe holds
            player.write(np.zeros(24000, np.float32))


def test_no_numbers_are_not_played(programs: Path) -> None:
    install(programs, "paplay", "exec /bin/cat > /dev/null")
    with pytest.raises(AudioError, match="paplay"), SystemPlayer(24000) as player:
        player.write(np.array([np.nan], np.float32))
