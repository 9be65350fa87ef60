"""Many channels to one: the usual downmix of surround layouts."""

import numpy as np

# WAVE_FORMAT_EXTENSIBLE's speakers, in the order of its mask's bits. Without a mask, channels stand
# in this order too, in WAV as in FLAC.
_SPEAKERS = (
    *("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR"),
    *("TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR"),
)
_USUAL = {  # channels -> speakers
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}
_XIPH = {  # of Vorbis and Opus, where it differs
    3: ("FL", "FC", "FR"),
    5: ("FL", "FC", "FR", "BL", "BR"),
    6: ("FL", "FC", "FR", "BL", "BR", "LFE"),
    7: ("FL", "FC", "FR", "SL", "SR", "BC", "LFE"),
    8: ("FL", "FC", "FR", "SL", "SR", "BL", "BR", "LFE"),
}
_SIDE, _BEHIND = np.sqrt(0.5), 0.5


def downmix_weights(channels: int, mask: int = 0, *, xiph: bool = False) -> np.ndarray:
    """Weights, float32 `[channels]`, whose sum over a frame is the mono sample.

    ITU-R BS.775 for a centre: it keeps its level, the front pair comes at 0.71, what is beside and
    behind at 0.5, low-frequency effects not at all. Without a centre the front pair becomes its
    mean and the rest is scaled with it. One and two channels, and layouts that nothing says, become
    the plain mean. `mask` is WAV's; `xiph` means the channel order of Vorbis and Opus.
    """
    speakers = _speakers(channels, mask, xiph)
    if channels <= 2 or not {"FL", "FR"} <= set(speakers):
        return np.full(channels, 1 / channels, np.float32)
    levels = {"FC": 1.0, "FL": _SIDE, "FR": _SIDE, "FLC": _SIDE, "FRC": _SIDE, "LFE": 0.0}
    weights = np.array([levels.get(speaker, _BEHIND) for speaker in speakers])
    if "FC" not in speakers:
        weights *= 0.5 / _SIDE
    return weights.astype(np.float32)


def _speakers(channels: int, mask: int, xiph: bool) -> tuple[str, ...]:
    """Empty if unknown."""
    named = tuple(name for bit, name in enumerate(_SPEAKERS) if mask >> bit & 1)
    if mask and len(named) == channels == mask.bit_count():
        return named
    if mask == 0:
        return (_XIPH if xiph else {}).get(channels) or _USUAL.get(channels, ())
    return ()
