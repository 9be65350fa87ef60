"""report.html: one file with everything in it, from the report's data and the recordings.

Every number on the page stands in a `<data>` element that says where in report.json it is.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimo_edge.parity import charts
from mimo_edge.parity.judge import Verdict
from mimo_edge.parity.page_media import mels, sounds
from mimo_edge.parity.page_parts import (
    STATUS,
    floats,
    pairs,
    section,
    short,
    shown,
    status_class,
    table,
    text,
    unit,
    weights,
)

STYLE = Path(__file__).parent / "page.css"
PATCHES = "patch of the answer (160 ms each)"


class Page:
    """Writes the page of one report."""

    def __init__(self, data: dict[str, Any], verdicts: Sequence[Verdict]) -> None:
        self._data, self._verdicts = data, verdicts

    def html(self) -> str:
        """The whole file."""
        body = [self._head(), self._overview(), self._sides()]
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
            limit = f"{sign} {self._number(path + '.limit')}"
        ties = ""
        if check["near_ties"]:
            word = "near tie" if check["near_ties"] == 1 else "near ties"
            ties = f", {self._number(path + '.near_ties')} {word}"
        return (
            f'<span class="{status_class(check["passed"])}">{STATUS[check["passed"]]}</span> '
            f"{self._number(path + '.value')} {unit(check['unit'])} "
            f'<small title="{html.escape(check["reason"])}">[{limit}]{ties}</small>'
        )

    def _sides(self) -> str:
        sides = [("against", self._data["against"])]
        sides += [(f"candidates.{i}", c) for i, c in enumerate(self._data["candidates"])]
        facts = [
            ("kind", lambda p, s: text(s["kind"])),
            ("identity", lambda p, s: f"<code>{text(s['id'][:16])}</code>"),
            ("precision", lambda p, s: text(s["precision"])),
            ("weights", lambda p, s: text(weights(s.get("weights")))),
            ("made with", lambda p, s: text(pairs(s.get("tools")))),
            ("runs on", lambda p, s: text(f"{s['runs_on']}; {s['machine']}, {s['processor']}")),
            ("size", lambda p, s: self._maybe(p, s, "bytes", "bytes")),
            ("peak memory of the process", lambda p, s: self._maybe(p, s, "peak_bytes", "bytes")),
            ("time", lambda p, s: self._maybe(p, s, "seconds_per_patch", "s a patch, median")),
            ("streamed against whole", lambda p, s: self._maybe(p, s, "seam_snr", "dB, worst")),
        ]
        rows = [
            f'<tr><th scope="row">{text(name)}</th>'
            + "".join(f"<td>{value(path, side)}</td>" for path, side in sides)
            + "</tr>"
            for name, value in facts
        ]
        columns = ["", *(side["name"] for _, side in sides)]
        heard = ", ".join(clip["name"] for clip in self._data["inputs"]["clips"]) or "none"
        given = f"<p>Recordings that were heard: {text(heard)}. Seeds and prompts: report.json.</p>"
        return section("Who was compared", table("The sides", columns, rows) + given)

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
            + self._sequences(path, candidate)
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
            snr = self._number(f"{path}.bisected.findings.{i}.snr")
            items.append(
                f"<li>{text(finding['sentence'])} ({snr} dB). Weights there: "
                f"<code>{text(', '.join(finding['weights']) or 'none')}</code></li>"
            )
        found = f"<ul>{''.join(items)}</ul>" if items else "<p>Every layer is in tolerance.</p>"
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

    def _figures(self, path: str, candidate: dict[str, Any]) -> str:
        rows = []
        for i, each in enumerate(candidate["figures"]):
            numbers = [
                self._number(f"{path}.figures.{i}.{name}")
                for name in ("max_abs", "mean_abs", "snr", "cosine_mean", "cosine_min", "required")
            ]
            worst = "–"
            if each["worst_at"]:
                at = ", ".join(map(str, each["worst_at"]))
                worst = (
                    f"[{at}] {self._number(f'{path}.figures.{i}.worst_value')} in place of "
                    f"{self._number(f'{path}.figures.{i}.worst_expected')}"
                )
            cells = "".join(f"<td>{n}</td>" for n in (*numbers, worst))
            head = f'<th scope="row">{text(each["stage"])}</th><td>{text(each["of"])}</td>'
            rows.append(f"<tr>{head}{cells}</tr>")
        columns = ["stage", "of", "largest difference", "mean", "SNR, dB", "cosine, mean"]
        columns += ["cosine, least", "tolerance that would pass", "worst element"]
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
                    f"<td>{self._number(f'{path}.{key}.{k}.{name}')}</td>"
                    for name in ("share", "equal", "near_ties", "count")
                )
                + "</tr>"
                for k in range(len(found))
            ]
            listed = table(
                f"Equal {what}", ["codebook", "share", "equal", "near ties", "judged"], rows
            )
            parts.append(
                f"<h3>{what.capitalize()}</h3><figure>{chart}</figure>"
                f"<details><summary>As a table</summary>{listed}</details>"
            )
        return "".join(parts)

    def _sequences(self, path: str, candidate: dict[str, Any]) -> str:
        parts = ["<h3>Along the answers</h3>"]
        for i, found in enumerate(candidate["sequences"]):
            here = f"{path}.sequences.{i}"
            name = found["name"]
            own = self._data["against"]["answers"].get(name, "")
            said = candidate["answers"].get(name, "")
            choices = charts.strip(
                f"Choices of {name}",
                [("text", found["text"]), ("speech gate", found["gate"])],
                PATCHES,
            )
            kl = charts.lines(
                f"Divergence of {name}",
                [("KL", floats(found["kl"]))],
                PATCHES,
                "KL, nats",
                f"largest {max(floats(found['kl']), default=0):.3g} nats",
            )
            entropy = charts.lines(
                f"Entropy of {name}",
                [
                    (candidate["name"], floats(found["entropy"])),
                    (self._data["against"]["name"], floats(found["entropy_own"])),
                ],
                PATCHES,
                "entropy, nats",
                "entropy of the text distribution of both sides",
            )
            parts.append(
                f"<article><h4>{text(name)}</h4>"
                f"<p>{self._parting(here + '.parting', found['parting'])} "
                f"{self._length(here, found)}</p>"
                f"<dl><dt>{text(self._data['against']['name'])}</dt><dd>{text(short(own))}</dd>"
                f"<dt>{text(candidate['name'])}</dt><dd>{text(short(said))}</dd></dl>"
                f'<div class="charts"><figure>{choices}</figure><figure>{kl}</figure>'
                f"<figure>{entropy}</figure></div></article>"
            )
        return "".join(parts)

    def _parting(self, path: str, parting: dict[str, Any] | None) -> str:
        if parting is None:
            return "The free runs are equal."
        where = parting["where"]
        if where == "codes":
            codebook, frame = (self._number(f"{path}.{key}") for key in ("codebook", "frame"))
            where = f"codebook {codebook}, frame {frame}"
        margin = "not known"
        if parting["margin"] is not None:
            margin = self._number(path + ".margin")
        ids = [self._number(f"{path}.{key}") for key in ("chosen", "expected")]
        for place, token in enumerate((parting["said"], parting["wanted"])):
            if token is not None:
                ids[place] += f" ({text(repr(token))})"
        return (
            f"The free runs part at patch {self._number(path + '.patch')}, {where}: "
            f"{ids[0]} in place of {ids[1]}; "
            f"margin {margin}{', a near tie' if parting['near_tie'] else ''}."
        )

    def _length(self, path: str, found: dict[str, Any]) -> str:
        ends = {True: "stopped by itself", False: "ended by the limit"}
        return (
            f"{self._number(path + '.patches')} patches, {ends[found['stopped']]}; the model's "
            f"{self._number(path + '.patches_own')}, {ends[found['stopped_own']]}."
        )

    def _maybe(self, path: str, side: dict[str, Any], key: str, unit: str) -> str:
        if side.get(key) is None:
            return "not known"
        return f"{self._number(f'{path}.{key}')} {unit}"

    def _number(self, path: str) -> str:
        """The number at a path of the data, in a form for people, with its place."""
        value: Any = self._data
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        return (
            f'<data value="{html.escape(json.dumps(value))}" data-path="{path}">'
            f"{shown(value)}</data>"
        )
