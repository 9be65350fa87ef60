"""The page's part on who was compared, on what inputs, and what streaming costs each."""

from collections.abc import Callable
from typing import Any

from mimo_edge.parity.page_parts import Numbers, pairs, section, table, text, weights

Fact = Callable[[str, dict[str, Any]], str]


def sides(data: dict[str, Any], numbers: Numbers) -> str:
    """The model and the candidates beside each other."""
    paths = ["against", *(f"candidates.{i}" for i in range(len(data["candidates"])))]
    compared = [data["against"], *data["candidates"]]

    def maybe(key: str, unit: str) -> Fact:
        return lambda path, side: (
            "not known" if side[key] is None else f"{numbers.at(f'{path}.{key}')} {unit}"
        )

    facts: list[tuple[str, Fact]] = [
        ("kind", lambda _, side: text(side["kind"])),
        ("identity", lambda _, side: f"<code>{text(side['id'][:16])}</code>"),
        ("of the checkpoint", lambda _, side: _source(side)),
        ("precision", lambda _, side: text(side["precision"])),
        ("recipe", lambda _, side: text(side.get("recipe") or "–")),
        ("weights", lambda _, side: text(weights(side.get("weights")))),
        ("made with", lambda _, side: text(pairs(side.get("tools")))),
        ("runs on", lambda _, side: text(_place(side))),
        ("size", maybe("bytes", "bytes")),
        ("peak memory of the process", maybe("peak_bytes", "bytes")),
        ("time", maybe("seconds_per_patch", "s a patch, median")),
    ]
    rows = [
        f'<tr><th scope="row">{text(name)}</th>'
        + "".join(f"<td>{fact(p, s)}</td>" for p, s in zip(paths, compared, strict=True))
        + "</tr>"
        for name, fact in facts
    ]
    columns = ["", *(side["name"] for side in compared)]
    return section(
        "Who was compared",
        table("The sides", columns, rows)
        + _inputs(data, numbers)
        + _streaming(columns, paths, compared, numbers),
    )


def _source(side: dict[str, Any]) -> str:
    return f"<code>{text(side['source'][:16])}</code>" if side.get("source") else "–"


def _place(side: dict[str, Any]) -> str:
    where = f"{side['runs_on']}; {side['machine']}, {side['processor']}"
    return f"{where}, Python {side['python']}"


def _inputs(data: dict[str, Any], numbers: Numbers) -> str:
    """What was heard and read, and how it was answered."""
    rows = []
    for i, sequence in enumerate(data["inputs"]["sequences"]):
        path = f"inputs.sequences.{i}"
        how = "greedy"
        if sequence["text"]["temperature"] > 0:
            how = ", ".join(
                f"{name} {numbers.at(f'{path}.text.{name}')}"
                for name in ("temperature", "top_k", "top_p")
            )
        cells = [text(sequence["task"]), text(sequence["source"]), how]
        cells += [numbers.at(f"{path}.{name}") for name in ("seed", "prompt", "max_new")]
        head = f'<th scope="row">{text(sequence["name"])}</th>'
        rows.append(f"<tr>{head}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    columns = ["prompt", "task", "of", "drawn", "seed", "patches of it", "of the answer, at most"]
    heard = ", ".join(clip["name"] for clip in data["inputs"]["clips"]) or "none"
    return f"<h3>Inputs</h3><p>Recordings that were heard: {text(heard)}.</p>" + table(
        "What all sides read", columns, rows
    )


def _streaming(
    columns: list[str], paths: list[str], compared: list[dict[str, Any]], numbers: Numbers
) -> str:
    """A side's streamed sound against its own whole decode."""
    rows = []
    for name in dict.fromkeys(each["name"] for side in compared for each in side["streaming"]):
        cells = []
        for path, side in zip(paths, compared, strict=True):
            place = next((i for i, e in enumerate(side["streaming"]) if e["name"] == name), None)
            if place is None:
                cells.append("not there")
                continue
            here = f"{path}.streaming.{place}"
            seam = ""
            if side["streaming"][place]["seam_error"] is not None:
                seam = f", {numbers.at(f'{here}.seam_error')} dB at seams"
            cells.append(f"{numbers.at(f'{here}.snr')} dB{seam}")
        head = f'<th scope="row">{text(name)}</th>'
        rows.append(f"<tr>{head}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    if not rows:
        return ""
    about = (
        "<p>Signal to noise of a side's stream against its own whole decode, and how much louder "
        "the difference is within 10 ms of a seam than elsewhere.</p>"
    )
    listed = table("By sound", columns, rows)
    return f"<h3>Streamed against whole</h3>{about}{listed}"
