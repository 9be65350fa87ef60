"""report.html: one file with everything in it, from the report's data and the recordings.

Every number on the page stands in a `<data>` element that says where in report.json it is.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimo_edge.parity import charts
from mimo_edge.parity.judge import Verdict
from mimo_edge.parity.page_answers import answers
from mimo_edge.parity.page_media import mels, sounds
from mimo_edge.parity.page_parts import (
    STATUS,
    Numbers,
    floats,
    section,
    status_class,
    table,
    text,
    unit,
)
from mimo_edge.parity.page_sides import sides

STYLE = Path(__file__).parent / "page.css"


class Page:
    """Writes the page of one report."""

    def __init__(self, data: dict[str, Any], verdicts: Sequence[Verdict]) -> None:
        self._data, self._verdicts = data, verdicts
        self._numbers = Numbers(data)

    def html(self) -> str:
        """The whole file."""
        body = [self._head(), self._overview(), sides(self._data, self._numbers)]
        for index, verdict in enumerate(self._verdicts):
            body.append(self._candidate(index, verdict))
        style = STYLE.read_text(encoding="utf-8")
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>Parity report</title><style>{style}</style></head>\n"
            '<body><a class="skip" href="#main">Skip to the results</a>\n'
            f'<main id="main">{"".join(body)}</main></body></html>\n'
        )

    def _head(self) -> str:
        data = self._data
        names = ", ".join(c["name"] for c in data["candidates"])
        word = "pass" if data["passed"] else "fail"
        return (
            f'<header><p class="verdict {word}">{STATUS[data["passed"]]}</p>'
            f"<h1>Parity report</h1><p>{text(names)} against {text(data['against']['name'])}, "
            f"made {text(data['made'])} by mimo-edge {text(data['mimo_edge'])}</p></header>"
        )

    def _overview(self) -> str:
        """All checks of all candidates in one table."""
        candidates = self._data["candidates"]
        columns = ["stage", "check", *(c["name"] for c in candidates)]
        names = list(dict.fromkeys(k["name"] for c in candidates for k in c["checks"]))
        rows = []
        for name in names:
            cells, about = [], None
            for index, candidate in enumerate(candidates):
                found = [(i, k) for i, k in enumerate(candidate["checks"]) if k["name"] == name]
                if not found:
                    cells.append("<td>not there</td>")
                    continue
                place, about = found[0]
                path = f"candidates.{index}.checks.{place}"
                cells.append(f"<td>{self._check_cell(path, about)}</td>")
            assert about is not None
            head = f'<th scope="row">{text(about["stage"])}</th><td>{text(about["title"])}</td>'
            rows.append(f"<tr>{head}{''.join(cells)}</tr>")
        return section("Checks", table("Every check; limits are in brackets", columns, rows))

    def _check_cell(self, path: str, check: dict[str, Any]) -> str:
        limit = "no limit"
        if check["limit"] is not None:
            sign = "≥" if check["better"] == "higher" else "≤"
            limit = f"{sign} {self._numbers.at(path + '.limit')}"
        ties = ""
        if check["near_ties"]:
            word = "near tie" if check["near_ties"] == 1 else "near ties"
            ties = f", {self._numbers.at(path + '.near_ties')} {word}"
        return (
            f'<span class="{status_class(check["passed"])}">{STATUS[check["passed"]]}</span> '
            f"{self._numbers.at(path + '.value')} {unit(check['unit'])} "
            f'<small title="{html.escape(check["reason"])}">[{limit}]{ties}</small>'
        )

    def _candidate(self, index: int, verdict: Verdict) -> str:
        candidate, path = self._data["candidates"][index], f"candidates.{index}"
        first = candidate["first_failed"]
        lead = (
            f"<p>The first stage that fails: <strong>{text(first)}</strong>.</p>" if first else ""
        )
        return section(
            f"{candidate['name']}, {candidate['precision']}",
            lead
            + self._layers(path, candidate)
            + self._reasons(path, candidate)
            + self._figures(path, candidate)
            + self._codebooks(path, candidate)
            + answers(self._data, self._numbers, path, candidate)
            + mels(verdict)
            + sounds(verdict),
        )

    def _reasons(self, path: str, candidate: dict[str, Any]) -> str:
        rows = [
            f'<tr><th scope="row">{text(check["title"])}</th>'
            f"<td>{self._check_cell(f'{path}.checks.{i}', check)}</td>"
            f"<td>{text(check['reason'])}</td></tr>"
            for i, check in enumerate(candidate["checks"])
        ]
        listed = table(
            "The value is also the smallest limit that would pass", ["check", "value", "why"], rows
        )
        summary = "<summary>Checks and the reasons for their limits</summary>"
        return f"<details open>{summary}{listed}</details>"

    def _layers(self, path: str, candidate: dict[str, Any]) -> str:
        """Where it broke, and how near each layer is."""
        bisected = candidate["bisected"]
        if bisected is None:
            return ""
        items = []
        for i, finding in enumerate(bisected["findings"]):
            snr = self._numbers.at(f"{path}.bisected.findings.{i}.snr")
            items.append(
                f"<li>{text(finding['sentence'])} ({snr} dB). Weights there: "
                f"<code>{text(', '.join(finding['weights']) or 'none')}</code></li>"
            )
        notes = [f"<p>{text(note)}</p>" for note in bisected["notes"]]
        found = f"<ul>{''.join(items)}</ul>" if items else ""
        if not items and not notes:
            found = "<p>Every layer is in tolerance.</p>"
        found += "".join(notes) + self._engines(f"{path}.bisected", bisected["engines"])
        stages = list(dict.fromkeys(layer["stage"] for layer in bisected["layers"]))
        charts_of = []
        for stage in stages:
            near = [layer["snr"] for layer in bisected["layers"] if layer["stage"] == stage]
            drawn = charts.lines(
                f"Layers of {stage}",
                [("signal to noise", [max(0.0, v) for v in floats(near)])],
                f"place in {stage}, two to a layer",
                "signal to noise, dB",
                ", ".join(f"{v:.0f}" for v in floats(near)),
            )
            charts_of.append(f"<figure>{drawn}</figure>")
        return f'<h3>Layer by layer</h3>{found}<div class="charts">{"".join(charts_of)}</div>'

    def _engines(self, path: str, engines: list[dict[str, Any]]) -> str:
        """Those that were built to look at one state each."""
        rows = []
        for i, engine in enumerate(engines):
            at = f"{path}.engines.{i}"
            if engine["own"]["differ"] is not None:
                apart = f"{self._numbers.at(f'{at}.own.differ')} codes differ"
            else:
                apart = f"{self._numbers.at(f'{at}.own.snr')} dB, largest difference "
                apart += self._numbers.at(f"{at}.own.largest")
            cells = (
                f'<th scope="row">{text(engine["tap"])}</th><td>{text(engine["stage"])}</td>',
                f"<td>{self._numbers.at(f'{at}.snr')} ({engine['allowed']:g} allowed)</td>",
                f"<td>{text(engine['output'])}: {apart}</td>",
                f"<td>{'yes' if engine['wrong'] else 'no'}</td>",
            )
            rows.append(f"<tr>{''.join(cells)}</tr>")
        columns = ["state that it shows", "stage", "that state, dB"]
        columns += ["its own output, from the engine of the build", "is that still wrong?"]
        return table("Engines that were built to look inside", columns, rows) if rows else ""

    def _figures(self, path: str, candidate: dict[str, Any]) -> str:
        rows = []
        for i, each in enumerate(candidate["figures"]):
            numbers = [
                self._numbers.at(f"{path}.figures.{i}.{name}")
                for name in ("required", "mean_abs", "snr", "cosine_mean", "cosine_min")
            ]
            worst = "–"
            if each["worst_at"]:
                at = ", ".join(map(str, each["worst_at"]))
                worst = (
                    f"[{at}] {self._numbers.at(f'{path}.figures.{i}.worst_value')} in place of "
                    f"{self._numbers.at(f'{path}.figures.{i}.worst_expected')}"
                )
            cells = "".join(f"<td>{n}</td>" for n in (*numbers, worst))
            head = f'<th scope="row">{text(each["stage"])}</th><td>{text(each["of"])}</td>'
            rows.append(f"<tr>{head}{cells}</tr>")
        columns = ["stage", "of", "largest difference: the tolerance that would pass", "mean"]
        columns += ["SNR, dB", "cosine, mean", "cosine, least", "worst element"]
        return f"<h3>Values of each stage</h3>{table('By stage and input', columns, rows)}"

    def _codebooks(self, path: str, candidate: dict[str, Any]) -> str:
        parts = []
        for key, what in (("heard", "codes that are heard"), ("codes", "codes that are drawn")):
            found = candidate[key]
            if not found:
                continue
            names = [str(k) for k in range(len(found))]
            told = ", ".join(f"{k}: {a['share']:.3g}" for k, a in enumerate(found))
            chart = charts.bars(
                f"Equal {what}, by codebook",
                [a["share"] for a in found],
                names,
                "codebook",
                "equal, of 1 (near ties apart)",
                told,
            )
            rows = [
                f'<tr><th scope="row">{k}</th>'
                + "".join(
                    f"<td>{self._numbers.at(f'{path}.{key}.{k}.{name}')}</td>"
                    for name in ("share", "equal", "near_ties", "count")
                )
                + f"<td>{self._margin(f'{path}.{key}.{k}', found[k])}</td></tr>"
                for k in range(len(found))
            ]
            columns = ["codebook", "share", "equal", "near ties", "judged"]
            columns.append("a near-tie margin that would pass all")
            listed = table(f"Equal {what}", columns, rows)
            parts.append(
                f"<h3>{what.capitalize()}</h3><figure>{chart}</figure>"
                f"<details><summary>As a table</summary>{listed}</details>"
            )
        return "".join(parts)

    def _margin(self, path: str, agreement: dict[str, Any]) -> str:
        """By how much the model preferred its own code, where that was most."""
        if agreement["largest_margin"] is None:
            return "–"
        return f"above {self._numbers.at(f'{path}.largest_margin')}"
