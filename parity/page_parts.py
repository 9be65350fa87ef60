"""Pieces of HTML that the page is put together from."""

import html
import json
from collections.abc import Sequence
from typing import Any

STATUS = {True: "✓ pass", False: "✗ fail", None: "– measured"}


class Numbers:
    """The numbers of a report's data, in a form for people, each with its place."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def at(self, path: str) -> str:
        """The number at a path: keys and places with dots between."""
        value: Any = self._data
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return (
            f'<data value="{html.escape(json.dumps(value))}" data-path="{path}">'
            f"{shown(value)}</data>"
        )


def text(content: str) -> str:
    """Any string, so that it is shown as it is."""
    return html.escape(content)


def table(caption: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{text(c)}</th>' for c in columns)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}">'
        f"<table><caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def section(title: str, body: str) -> str:
    return f"<section><h2>{text(title)}</h2>{body}</section>"


def shown(value: Any) -> str:
    if isinstance(value, str):
        return {"Infinity": "∞", "-Infinity": "−∞"}.get(value, value)
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:,.0f}".replace(",", "\u202f")


def floats(values: Sequence[Any]) -> list[float]:
    return [float(v) for v in values]


def status_class(passed: bool | None) -> str:
    return {True: "pass", False: "fail", None: "measured"}[passed]


def unit(unit: str) -> str:
    return "" if unit == "of 1" else text(unit)


def short(text: str) -> str:
    return text.replace("<|empty|>", "▪") if text else "–"


def weights(weights: dict[str, str] | None) -> str:
    if weights is None:
        return "as the checkpoint has them"
    by_scheme: dict[str, list[str]] = {}
    for component, scheme in weights.items():
        by_scheme.setdefault(scheme, []).append(component)
    if len(by_scheme) == 1:
        return f"{next(iter(by_scheme))} everywhere"
    return "; ".join(f"{scheme}: {', '.join(parts)}" for scheme, parts in by_scheme.items())


def pairs(tools: dict[str, str] | None) -> str:
    return ", ".join(f"{name} {version}" for name, version in (tools or {}).items()) or "–"
