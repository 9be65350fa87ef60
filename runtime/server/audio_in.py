"""Audio that came in a request: always bytes, never a path or an address."""

import base64
import binascii

from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.bundle.errors import AudioError
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.service import Service


def wav_of(service: Service, data: bytes, param: str) -> Floats:
    """A file's bytes -> wav [N] at the model's rate."""
    limits, rate = service.limits, service.model.sampling_rate
    if len(data) > limits.upload_bytes:
        raise RequestError(
            f"{param} has {len(data)} bytes and may have {limits.upload_bytes}.",
            status=413,
            code="file_too_large",
            param=param,
        )
    try:
        return load_audio(data, rate=rate, max_seconds=limits.audio_seconds)
    except AudioError as error:
        raise RequestError(f"{param}: {error}", code="invalid_audio", param=param) from error


def decoded(text: str, param: str) -> bytes:
    """Base64, strictly."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{param} is no base64: {error}.", param=param) from None
