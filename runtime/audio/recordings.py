"""What a caller gives as audio, as codes: files, arrays at any rate, and codes that are there."""

import numpy as np
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.audio.pieces import encode_pieces
from mimo_edge.runtime.audio.read import MIN_SAMPLES, audio_from_array, load_audio
from mimo_edge.runtime.backends.base import AudioPieces, Ints
from mimo_edge.runtime.bundle.errors import ContextError, InputError
from mimo_edge.runtime.chat.conversation import Audio
from mimo_edge.runtime.chat.segments import pad_codes


def encode_audio(backend: AudioPieces, audio: Audio, sampling_rate: int | None = None) -> Ints:
    """Audio -> codes [K, T], whole patches. Raises AudioError, and ContextError for what no
    prompt can hold."""
    model, pieces = backend.bundle.model, backend.bundle.member.piece_seconds
    if isinstance(audio, np.ndarray) and audio.ndim == 2 and audio.dtype == np.int64:
        return pad_codes(audio.astype(np.int64), model.group_size)
    # pieces are filled where they are too short for a mel
    least, most = MIN_SAMPLES if pieces is None else 1, model.max_audio_seconds
    if isinstance(audio, np.ndarray):
        rate = model.sampling_rate if sampling_rate is None else sampling_rate
        wav = audio_from_array(
            audio, rate, rate=model.sampling_rate, max_seconds=most, min_samples=least
        )
    elif sampling_rate is not None:
        raise InputError("a sampling_rate is of an array; a file says its own: leave it out")
    else:
        rate = model.sampling_rate
        wav = load_audio(audio, rate=rate, max_seconds=most, min_samples=least)
    patches = len(wav) // (model.group_size * model.samples_per_frame)
    if patches >= model.context:  # before minutes are spent on it
        raise ContextError(
            f"the audio, {len(wav) / model.sampling_rate:.0f} s, is {patches} patches and the "
            f"context holds {model.context} with the answer. Cut it into parts."
        )
    return codec.encode(backend, wav) if pieces is None else encode_pieces(backend, wav, pieces)
