"""Loss curves of the stages, from their logs. Needs the extra `report`."""

import json
from pathlib import Path

_CURVES = {
    "tokenizer": ("mel", "harmonics", "stft", "held_out_mel", "held_out_stft"),
    "decoder": ("mel", "harmonics", "stft", "held_out_mel", "held_out_stft"),
    "language_model": (
        *("text", "codes", "heard", "said"),
        *("held_out_text", "held_out_codes", "held_out_error_rate"),
    ),
}


def read_log(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Figure -> (step, value) in the order of the steps."""
    curves: dict[str, list[tuple[int, float]]] = {}
    path = folder / "log.jsonl"
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        line = json.loads(text)
        for name, value in line.items():
            if name not in ("step", "seconds"):
                curves.setdefault(name, []).append((line["step"], value))
    return curves


def plot(work: Path) -> list[Path]:
    """Write `work`/STAGE.png for each stage that has a log; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    written = []
    for stage, names in _CURVES.items():
        curves = read_log(work / stage)
        shown = [name for name in names if name in curves]
        if not shown:
            continue
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for name in shown:
            steps, values = zip(*curves[name], strict=True)
            held_out = name.startswith("held_out")
            axes.plot(steps, values, label=name, linewidth=2 if held_out else 0.8)
        axes.set(title=stage, xlabel="step", yscale="log")
        axes.legend()
        axes.grid(alpha=0.3)
        path = work / f"{stage}.png"
        figure.savefig(path, dpi=120)
        written.append(path)
    return written
