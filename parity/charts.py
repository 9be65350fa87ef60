"""Charts as inline SVG. Colours are classes, so that the page's style decides light and dark; every
chart has a title and a description that a screen reader says."""

import html
import math
from collections.abc import Sequence
from itertools import groupby

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 14, 40
GLYPHS = {"=": ("equal", ""), "~": ("near tie", "~"), "x": ("different", "×")}


def lines(
    title: str, curves: Sequence[tuple[str, Sequence[float]]], x: str, y: str, described: str
) -> str:
    """Curves over 0, 1, 2, ...; `x` and `y` name the axes with their units."""
    finite = [v for _, values in curves for v in values if math.isfinite(v)]
    high = _round_up(max(finite, default=0.0)) or 1.0
    longest = max((len(values) for _, values in curves), default=1)
    plot_w, plot_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(index: int, value: float) -> tuple[float, float]:
        across = LEFT + plot_w * (index / max(1, longest - 1))
        return across, TOP + plot_h * (1 - min(value, high) / high)

    parts = []
    for tick in range(5):
        value = high * tick / 4
        _, at = place(0, value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(_text("tick", LEFT - 6, at + 4, f"{value:.3g}", "end"))
    for index in _ticks(longest):
        at, _ = place(index, 0)
        parts.append(_text("tick", at, HEIGHT - BOTTOM + 16, str(index)))
    for number, (name, values) in enumerate(curves):
        points = " ".join(
            f"{a:.1f},{b:.1f}"
            for a, b in (place(i, v) for i, v in enumerate(values) if math.isfinite(v))
        )
        parts.append(f'<polyline class="curve c{number}" points="{points}"/>')
        parts.append(
            f'<text class="legend c{number}" x="{WIDTH - RIGHT}" y="{TOP + 12 + 15 * number}" '
            f'text-anchor="end">{"― " if number == 0 else "- - "}{html.escape(name)}</text>'
        )
    parts.append(_axes(x, y))
    return _svg(title, described, "".join(parts))


def bars(
    title: str, values: Sequence[float], names: Sequence[str], x: str, y: str, described: str
) -> str:
    """Shares from 0 to 1."""
    plot_w, plot_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    wide = plot_w / max(1, len(values))
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        at = TOP + plot_h * (1 - tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(_text("tick", LEFT - 6, at + 4, f"{tick:g}", "end"))
    for index, (value, name) in enumerate(zip(values, names, strict=True)):
        tall, left = plot_h * value, LEFT + wide * index
        parts.append(
            f'<rect class="bar" x="{left + wide * 0.15:.1f}" y="{TOP + plot_h - tall:.1f}" '
            f'width="{wide * 0.7:.1f}" height="{tall:.1f}"/>'
        )
        parts.append(_text("tick", left + wide / 2, HEIGHT - BOTTOM + 16, name))
    parts.append(_axes(x, y))
    return _svg(title, described, "".join(parts))


def strip(title: str, rows: Sequence[tuple[str, str]], x: str) -> str:
    """Choices along a sequence, one cell each: rows of (name, marks)."""
    longest = max((len(marks) for _, marks in rows), default=1)
    wide, tall = (WIDTH - 90 - RIGHT) / max(1, longest), 22
    height = 10 + tall * len(rows) + 34
    parts = []
    for number, (name, marks) in enumerate(rows):
        top = 10 + tall * number
        parts.append(_text("tick", 82, top + 14, name, "end"))
        index = 0
        for mark, run in groupby(marks):
            word, glyph = GLYPHS[mark]
            count = len(list(run))
            kind = word.replace(" ", "-")
            parts.append(
                f'<rect class="cell {kind}" x="{90 + wide * index:.1f}" y="{top}" '
                f'width="{wide * count - 1:.1f}" height="{tall - 4}"><title>{word}</title></rect>'
            )
            for at in range(index, index + count) if glyph else ():
                parts.append(_text("glyph", 90 + wide * (at + 0.5), top + 14, glyph))
            index += count
    for index in _ticks(longest):
        parts.append(_text("tick", 90 + wide * (index + 0.5), height - 22, str(index)))
    parts.append(_text("axis", WIDTH / 2, height - 5, x))
    told = "; ".join(
        f"{name}: {marks.count('=')} equal, {marks.count('~')} near ties, "
        f"{marks.count('x')} different"
        for name, marks in rows
    )
    return _svg(title, told, "".join(parts), height)


def picture(
    title: str, image: str, wide: tuple[float, str], tall: tuple[float, str], described: str
) -> str:
    """A data URI with axes: the last value and the name of each, from 0."""
    plot_w, plot_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = [
        f'<image href="{image}" x="{LEFT}" y="{TOP}" width="{plot_w}" height="{plot_h}" '
        'preserveAspectRatio="none"/>'
    ]
    for part in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            _text("tick", LEFT + plot_w * part, HEIGHT - BOTTOM + 16, f"{wide[0] * part:.3g}")
        )
    for part in (0, 0.5, 1):
        parts.append(
            _text("tick", LEFT - 6, TOP + plot_h * (1 - part) + 4, f"{tall[0] * part:.3g}", "end")
        )
    parts.append(_axes(wide[1], tall[1]))
    return _svg(title, described, "".join(parts))


def _text(kind: str, x: float, y: float, content: str, anchor: str = "middle") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{html.escape(content)}</text>"
    )


def _axes(x: str, y: str) -> str:
    middle = TOP + (HEIGHT - TOP - BOTTOM) / 2
    return (
        f'<text class="axis" x="{LEFT + (WIDTH - LEFT - RIGHT) / 2}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{html.escape(x)}</text>'
        f'<text class="axis" transform="translate(13 {middle:.0f}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(y)}</text>'
    )


def _svg(title: str, described: str, body: str, height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img"><title>{html.escape(title)}</title>'
        f"<desc>{html.escape(described)}</desc>{body}</svg>"
    )


def _round_up(value: float) -> float:
    """To a number of one or two digits, so that ticks read well."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 2, 4, 6, 8, 10) if step * unit >= value * (1 - 1e-9))


def _ticks(count: int) -> list[int]:
    step = max(1, round(count / 8))
    return list(range(0, count, step))
