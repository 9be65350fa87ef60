"""The stateful streaming decode: new frames cost what they are, however long the stream is.

Two graphs share the work. `mel_stream` turns new codes into mel frames and is causal; its keys and
values lie in a ring. `vocoder_stream` turns mel frames into sound, block by block, each block with
the frames ahead of it (mimo_ref/vocoder_stream.py says what that means). So what sounds depends on
the codes, the block and the lookahead, and never on how the codes arrive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mimo_edge.runtime.audio.overlap import OverlapAdd
from mimo_edge.runtime.backends.base import AudioPieces, CodecStates, Floats, Ints
from mimo_edge.runtime.backends.finite import check_finite
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import ModelSpec
from mimo_edge.runtime.bundle.stream_sizes import (
    MOST_FRAMES,
    MOST_TOKENS,
    MOST_WEIGHT,
    NOWHERE,
    RING_FRAMES,
)
from numpy.typing import NDArray

BLOCK = 4  # frames that sound together: a patch
LOOKAHEAD = 4  # frames that a block sees ahead
_EVER = 1 << 20  # a block that never comes


@dataclass
class _Row:
    """What one stream has left behind, beside its keys and values."""

    overlap: OverlapAdd
    statistics: Floats  # [4]
    last: Floats  # [overlap, D]
    past: Ints  # [C] positions that the vocoder remembers
    mel: Floats  # [n, n_mels] not yet sounded
    frames: int = 0  # code frames so far
    weight: int = 0  # frames that the statistics stand for
    sounded: int = 0  # mel frames so far that were blocks' own


@dataclass(frozen=True)
class Tokens:
    """What the vocoder is given in one call, for one row; see mimo_ref/vocoder_stream.py."""

    mel: Floats  # [Q, n_mels]
    positions: Ints  # [Q]
    blocks: Ints
    until: Ints
    own: Ints = field(repr=False)  # which of the tokens sound


class StreamRows:
    """Streams in the rows of one state. Each gets what it would get alone."""

    def __init__(
        self,
        states: CodecStates,
        model: ModelSpec,
        lookahead: int = LOOKAHEAD,
        block: int = BLOCK,
    ) -> None:
        """Raises InputError for a block or lookahead that does not fit one call."""
        check(model, lookahead, block)
        self._mel_per_frame = model.samples_per_frame // model.hop_length
        self._states, self._model = states, model
        self.lookahead, self.block = lookahead, block
        self._rows = [self._empty() for _ in range(states.rows)]

    def _empty(self) -> _Row:
        states, model = self._states, self._model
        return _Row(
            OverlapAdd(model.n_fft, model.hop_length),
            np.zeros(4, np.float32),
            np.zeros(states.last_shape, np.float32),
            np.full(states.remembered, NOWHERE, np.int64),
            np.zeros((0, model.n_mels), np.float32),
        )

    def push(self, codes: Mapping[int, Ints]) -> dict[int, Floats]:
        """Row -> its new codes [K, T], T may be 0 -> row -> what can sound now, maybe nothing.

        BundleError, naming the piece, if what it computed for one of them is NaN or infinite.
        """
        left = {row: given for row, given in codes.items() if given.shape[1]}
        while left:
            taken = self._advance(left)
            left = {r: c[:, taken[r] :] for r, c in left.items() if c.shape[1] > taken[r]}
        return self._sound({row: False for row in codes})

    def begin(
        self, row: int, *, position: int = 0, statistics: Floats | None = None, weight: int = 0
    ) -> None:
        """Begin a stream anew, as if `position` frames had gone before, and with statistics [4]
        that stand for `weight` frames."""
        self.clear(row)
        self._rows[row].frames, self._rows[row].weight = position, weight
        self._rows[row].sounded = position * self._mel_per_frame
        if statistics is not None:
            self._rows[row].statistics = statistics

    def finish(self, row: int) -> Floats:
        """The rest of a stream; its row is then as new."""
        wav = self._sound({row: True})[row]
        if self._rows[row].frames:
            wav = np.concatenate((wav, self._rows[row].overlap.finish()))
        self.clear(row)
        return wav

    def weight(self, row: int) -> int:
        """How many frames the statistics of a row stand for."""
        return self._rows[row].weight

    def clear(self, row: int) -> None:
        """Forget a stream."""
        self._states.clear(row)
        self._rows[row] = self._empty()

    def _advance(self, codes: Mapping[int, Ints]) -> dict[int, int]:
        """One call of mel_stream; how many frames of each row it took."""
        rows = self._rows
        taken = {row: min(c.shape[1], self._room(rows[row])) for row, c in codes.items()}
        longest = max(taken.values())
        given = np.zeros((len(rows), next(iter(codes.values())).shape[0], longest), np.int64)
        lengths = np.zeros(len(rows), np.int64)
        for row, count in taken.items():
            given[row, :, :count], lengths[row] = codes[row][:, :count], count
        mel, statistics, last = self._states.mel(
            {
                "codes": given,
                "lengths": lengths,
                "positions": np.array([row.frames for row in rows], np.int64),
                "weights": np.array([row.weight for row in rows], np.int64),
                "past_statistics": np.stack([row.statistics for row in rows]),
                "past_last": np.stack([row.last for row in rows]),
            }
        )
        for index, count in taken.items():
            state = rows[index]
            new = check_finite(mel[index, : count * self._mel_per_frame], "mel_stream")
            state.mel = np.concatenate((state.mel, new))
            state.statistics, state.last = statistics[index].copy(), last[index].copy()
            state.frames += count
            state.weight += count
            if state.weight == MOST_WEIGHT:
                state.weight //= 2
        return taken

    @staticmethod
    def _room(row: _Row) -> int:
        """Frames that one call can take: to the ring's end, and until old statistics fade."""
        ring_left = RING_FRAMES - row.frames % RING_FRAMES
        return min(MOST_FRAMES, ring_left, MOST_WEIGHT - row.weight)

    def _sound(self, ending: Mapping[int, bool]) -> dict[int, Floats]:
        """Whole blocks, or all that is left of rows that end -> their sound."""
        wavs = {row: [np.zeros(0, np.float32)] for row in ending}
        while True:
            tokens = {row: self._tokens(self._rows[row], end) for row, end in ending.items()}
            tokens = {row: t for row, t in tokens.items() if len(t.positions)}
            if not tokens:
                return {row: np.concatenate(parts) for row, parts in wavs.items()}
            for row, wav in self._vocode(tokens).items():
                wavs[row].append(wav)

    def _tokens(self, row: _Row, ending: bool) -> Tokens:
        """As many blocks as one call takes."""
        own, ahead = self.block * self._mel_per_frame, self.lookahead * self._mel_per_frame
        whole = max(0, (len(row.mel) - ahead) // own)
        whole = min(whole, MOST_TOKENS // (own + ahead))
        spans = [(i * own, (i + 1) * own, (i + 1) * own + ahead) for i in range(whole)]
        if not whole and ending and len(row.mel):
            spans = [(0, len(row.mel), len(row.mel))]
        index = [np.arange(start, stop) for start, _, stop in spans]
        blocks = [np.full(len(i), number) for number, i in enumerate(index)]
        sounding = [i < end for i, (_, end, _) in zip(index, spans, strict=True)]
        where, block = _joined(index), _joined(blocks)
        sound = _joined(sounding).astype(bool)
        return Tokens(
            row.mel[where],
            row.sounded + where,
            block,
            np.where(sound, _EVER - 1, block),
            np.flatnonzero(sound),
        )

    def _vocode(self, tokens: Mapping[int, Tokens]) -> dict[int, Floats]:
        """One call of vocoder_stream -> row -> what its own tokens make sound."""
        rows, most = self._rows, max(len(t.positions) for t in tokens.values())
        remembered = self._states.remembered
        shape = (len(rows), most)
        mel = np.zeros((*shape, self._model.n_mels), np.float32)
        positions = np.zeros(shape, np.int64)
        # tokens that fill up a row see each other and are seen by nobody
        blocks, until = np.full(shape, _EVER), np.full(shape, _EVER)
        kept = np.tile(np.arange(remembered), (len(rows), 1))
        for index, t in tokens.items():
            count = len(t.positions)
            mel[index, :count], positions[index, :count] = t.mel, t.positions
            blocks[index, :count], until[index, :count] = t.blocks, t.until
            known = np.concatenate((np.arange(remembered), remembered + t.own))
            kept[index] = known[len(known) - remembered :]
        past = np.stack([row.past for row in rows])
        frames, weight = self._states.frames(
            {
                "mel": mel,
                "positions": positions,
                "blocks": blocks,
                "until": until,
                "past_positions": past,
                "kept": kept,
            }
        )
        found = {}
        for index, t in tokens.items():
            row = rows[index]
            row.past = np.concatenate((row.past, positions[index]))[kept[index]]
            row.mel = row.mel[len(t.own) :]
            row.sounded += len(t.own)
            sound = check_finite(frames[index, t.own], "vocoder_stream")
            found[index] = row.overlap.push(sound, weight)
        return found


class StatefulStream:
    """One stream in a state of its own."""

    def __init__(self, codec: AudioPieces, lookahead: int = LOOKAHEAD, block: int = BLOCK) -> None:
        check(codec.bundle.model, lookahead, block)  # before memory is taken
        self._states = codec.new_codec_rows(1)
        self._rows = StreamRows(self._states, codec.bundle.model, lookahead, block)

    def push(self, codes: Ints) -> Floats:
        """codes [K, T], T may be 0 -> what can sound now, maybe nothing."""
        return self._rows.push({0: codes})[0]

    def finish(self, codes: Ints | None = None) -> Floats:
        """The last codes, if any are left -> the rest of the stream, which is then as new."""
        wav = np.zeros(0, np.float32) if codes is None else self.push(codes)
        return np.concatenate((wav, self._rows.finish(0)))

    def close(self) -> None:
        """Give the state's memory back."""
        self._states.close()


def check(model: ModelSpec, lookahead: int, block: int = BLOCK) -> None:
    """Raises InputError for a block or lookahead that does not fit one call."""
    most = MOST_TOKENS * model.hop_length // model.samples_per_frame
    if block < 1 or lookahead < 0 or block + lookahead > most:
        raise InputError(
            f"lookahead {lookahead} with blocks of {block} frames: give a lookahead of 0 or more "
            f"and blocks of 1 or more, at most {most} frames together; the defaults are "
            f"{LOOKAHEAD} and {BLOCK}"
        )


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
