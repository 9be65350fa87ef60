"""What is to be seen and heard on the page: differences of mels, spectrograms, players."""

import html

import numpy as np
from mimo_edge.parity import charts
from mimo_edge.parity.judge import Verdict
from mimo_edge.parity.page_parts import text
from mimo_edge.parity.pictures import flac, heat
from mimo_edge.parity.spectrogram import spectrum
from mimo_edge.runtime.backends.base import Floats

QUIET, LOUD = -50.0, 40.0  # dB of a spectrogram
MOST_SOUNDS = 3  # of a candidate: the others are in the recordings


def mels(verdict: Verdict) -> str:
    parts = []
    for name in verdict.own.clips:
        mine, theirs = (r.arrays[f"mel/{name}"] for r in (verdict.candidate, verdict.own))
        if mine.shape != theirs.shape:
            continue
        seconds, largest = len(theirs) / 100, float(np.abs(mine - theirs).max())
        span = largest or 1.0
        svg = charts.picture(
            f"Log-mel difference of {name}",
            heat((mine - theirs).T, -span, span, diverging=True),
            (seconds, "seconds"),
            (theirs.shape[1], "mel band"),
            f"candidate minus model, largest {largest:.3g}",
        )
        parts.append(
            f"<figure>{svg}<figcaption>{text(name)}: log-mel, candidate minus model; blue is "
            f"−{span:.2g}, orange +{span:.2g} (natural logarithm)</figcaption></figure>"
        )
    return f'<h3>Mel</h3><div class="charts">{"".join(parts)}</div>' if parts else ""


def sounds(verdict: Verdict) -> str:
    """Players and spectrograms of model, candidate and difference."""
    rate, parts = verdict.own.layout.sampling_rate, list[str]()
    for key, theirs in verdict.own.arrays.items():
        if not key.startswith("sound/") or key not in verdict.candidate.arrays:
            continue
        name, mine = key.removeprefix("sound/"), verdict.candidate.arrays[key]
        if mine.shape != theirs.shape or len(parts) == MOST_SOUNDS:
            continue
        gap: Floats = mine - theirs
        loud = float(np.abs(gap).max())
        gain = 10 ** np.floor(np.log10(0.5 / loud)) if 0 < loud < 0.05 else 1.0
        sides = [("model", theirs), ("candidate", mine), (f"difference × {gain:g}", gap * gain)]
        figures = "".join(
            "<figure>"
            + charts.picture(
                f"Spectrogram of {name}, {what}",
                heat(spectrum(wav, rate), QUIET, LOUD),
                (len(wav) / rate, "seconds"),
                (5.0, "kHz"),
                f"{QUIET:g} to {LOUD:g} dB",
            )
            + f'<figcaption>{what}</figcaption><audio controls preload="none" '
            f'aria-label="{html.escape(f"{name}, {what}")}" src="{flac(wav, rate)}"></audio>'
            "</figure>"
            for what, wav in sides
        )
        parts.append(f'<h4>{text(name)}</h4><div class="charts">{figures}</div>')
    if not parts:
        return ""
    note = f"<p>Spectrograms from {QUIET:g} dB (dark) to {LOUD:g} dB (light).</p>"
    return f"<h3>Sound of the same codes</h3>{note}{''.join(parts)}"
