"""Optimisation profiles: the ranges of shapes that an engine must take."""

from dataclasses import dataclass

from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import PREFILL_LENGTHS, Profile, Range
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import AUDIO_SECONDS, TensorSpec
from mimo_edge.runtime.bundle.stream_sizes import MOST_FRAMES, MOST_TOKENS

CAPACITY = "capacity"  # the axis of a cache along which it grows
RUN_POSITIONS = 1024  # of all rows, in the largest run that a profile describes
SMALLEST_CHUNK = 64  # of a prefill, where that makes it more
AUDIO_PIECES = ("mel", "tokenizer_encoder", "tokenizer_decoder")
STREAM_PIECES = ("mel_stream", "vocoder_stream")


@dataclass(frozen=True)
class Limits:
    """What the engines are built for."""

    max_seq: int  # patches that a row's cache holds
    max_batch: int = 1  # rows that share a step

    def check(self, context: int) -> None:
        """Raises InputError for what the model or a profile cannot hold."""
        if not 2 <= self.max_seq <= context:
            raise InputError(
                f"--max-seq {self.max_seq}: choose 2 to {context}, the model's context"
            )
        if self.max_batch < 1:
            raise InputError(f"--max-batch {self.max_batch}: choose 1 or more")


def prefill_chunk(limits: Limits) -> int:
    """How many positions a prefill hands over at once.

    A loop sends two kinds of runs: steps, of all rows and one position, and prefills, of one row
    and many. A profile is a box that holds both, and with them the run that nothing sends, of all
    rows and many positions; TensorRT plans its scratch memory for that one. So the more rows, the
    shorter the chunk: the box has RUN_POSITIONS at most, until chunks would be so short that a
    prefill waited for the weights.
    """
    room = max(SMALLEST_CHUNK, RUN_POSITIONS // limits.max_batch)
    return min(limits.max_seq, max(length for length in PREFILL_LENGTHS if length <= room))


def profiles(bundle: Bundle, piece: str, limits: Limits) -> tuple[Profile, ...]:
    """The profile of a piece, input name -> range, in a tuple of one.

    Decode step and prefill share it, tuned for the step: a second profile would make TensorRT for
    RTX keep the weights twice (docs/tensorrt.md).
    """
    model = bundle.model
    rows = (1, limits.max_batch, limits.max_batch)
    one = (1, 1, 1)
    mel_frames = AUDIO_SECONDS * model.sampling_rate // model.hop_length
    samples = AUDIO_SECONDS * model.sampling_rate + 2 * model.n_fft
    code_frames = mel_frames // model.mel_per_frame
    mel_per_code = model.samples_per_frame // model.hop_length
    chunk = prefill_chunk(limits)
    fixed = {CAPACITY: (limits.max_seq,) * 3, "codebooks": (model.n_q,) * 3}
    audio = {
        "batch": one,
        "samples": (model.n_fft // 2 + 1, 5 * model.sampling_rate, samples),
        "mel_frames": (1, mel_frames // 12, mel_frames),
        "frames": (1, min(100, code_frames), code_frames),
    }
    language = {"batch": rows, "time": (1, 1, chunk), "patches": (1, 1, chunk)}
    stream = {
        "batch": rows,
        "frames": (1, model.group_size, MOST_FRAMES),
        "tokens": (1, 2 * model.group_size * mel_per_code, MOST_TOKENS),
    }
    axes = fixed | (audio if piece in AUDIO_PIECES else language)
    if piece in STREAM_PIECES:
        axes = fixed | stream
    return ({port.name: _range(port, axes) for port in bundle.piece(piece).inputs},)


def _range(port: TensorSpec, axes: dict[str, tuple[int, int, int]]) -> Range:
    shapes = [
        tuple(axes[axis][end] if isinstance(axis, str) else axis for axis in port.axes)
        for end in range(3)
    ]
    return shapes[0], shapes[1], shapes[2]
