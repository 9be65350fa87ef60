"""What a build may lose, by precision: thresholds.toml, and what a user puts over it."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimo_edge.runtime.bundle.errors import MALFORMED, InputError
from mimo_edge.runtime.bundle.files import read_text

DEFAULTS = Path(__file__).parent / "thresholds.toml"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")
_TEXTS = ("stage", "title", "unit", "better", "reason")


@dataclass(frozen=True)
class Threshold:
    """The limit of one figure. `stage` is empty where it is no check but a margin of one."""

    name: str
    unit: str
    reason: str
    limits: Mapping[str, float]  # by precision; a precision that is not there is not judged
    stage: str = ""
    title: str = ""
    better: str = "lower"

    def passes(self, value: float, precision: str) -> bool | None:
        """None where the precision has no limit."""
        limit = self.limits.get(precision)
        if limit is None:
            return None
        return value >= limit if self.better == "higher" else value <= limit


@dataclass(frozen=True)
class Thresholds:
    """All of them, by name."""

    all: Mapping[str, Threshold]

    @classmethod
    def open(cls, over: Path | None = None) -> "Thresholds":
        """The defaults, with those of a file in their place. Raises InputError for a file that
        names what no check measures, or gives something else than numbers."""
        known = {name: _threshold(name, raw) for name, raw in _read(DEFAULTS).items()}
        if over is None:
            return cls(known)
        for name, raw in _read(over).items():
            if name not in known:
                raise InputError(
                    f"{over} has a table {name!r}; the checks are {', '.join(sorted(known))}"
                )
            known[name] = _over(known[name], raw, over)
        return cls(known)

    def margin(self, name: str, precision: str) -> float:
        """Below this margin a choice is a near tie."""
        return self.all[name].limits.get(precision, 0.0)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except (OSError, *MALFORMED) as error:
        raise InputError(f"{path} cannot be read as TOML: {error}") from error


def _threshold(name: str, raw: Mapping[str, Any]) -> Threshold:
    texts = {key: raw[key] for key in _TEXTS if key in raw}
    return Threshold(name, limits={p: raw[p] for p in PRECISIONS if p in raw}, **texts)


def _over(known: Threshold, raw: Any, path: Path) -> Threshold:
    if not isinstance(raw, Mapping):
        raise InputError(f"{path}: {known.name} must be a table, [{known.name}], of limits")
    limits = dict(known.limits)
    for key, value in raw.items():
        if key == "reason" and isinstance(value, str):
            continue
        if key not in PRECISIONS or not isinstance(value, int | float) or isinstance(value, bool):
            raise InputError(
                f"{path}: {known.name}.{key} = {value!r}; give numbers for "
                f"{', '.join(PRECISIONS)}, and a text for reason"
            )
        limits[key] = float(value)
    reason = raw.get("reason", f"given in {path.name}")
    return replace(known, limits=limits, reason=reason)
