"""A report as files: report.json, report.html, and the recordings that it was made from."""

import importlib.metadata
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mimo_edge.parity.judge import Verdict
from mimo_edge.parity.page import Page
from mimo_edge.parity.report_data import plain, report
from mimo_edge.parity.whole_folder import whole_folder
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.files import write_text
from mimo_edge.runtime.bundle.folders import check_place

DATA, PAGE, RECORDINGS = "report.json", "report.html", "recordings"


def write_report(folder: Path, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Write the folder whole or not at all, a report that lies there being replaced; returns what
    is in report.json. Raises InputError for a folder that holds something else."""
    check_folder(folder)
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    data: dict[str, Any] = plain(report(verdicts, made, importlib.metadata.version("mimo-edge")))
    with whole_folder(folder) as partial:
        write_text(partial / DATA, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        write_text(partial / PAGE, Page(data, verdicts).html())
        saved = {id(r): r for v in verdicts for r in (v.own, v.candidate)}
        for number, recording in enumerate(saved.values()):
            name = f"{number}-{recording.identity['name']}"
            recording.save(partial / RECORDINGS / name)
    return data


def check_folder(folder: Path) -> None:
    """Raises InputError for a folder that no report may replace."""
    check_place(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _ours(folder))):
        raise InputError(f"{folder} exists and is no report; choose another -o, or delete it")


def table(data: dict[str, Any]) -> str:
    """All checks for people."""
    lines = []
    for candidate in data["candidates"]:
        lines.append(
            f"{candidate['name']} ({candidate['precision']}) against {data['against']['name']}"
        )
        for check in candidate["checks"]:
            word = {True: "pass", False: "FAIL", None: "-"}[check["passed"]]
            sign = ">=" if check["better"] == "higher" else "<="
            limit = "" if check["limit"] is None else f"{sign} {check['limit']:g}"
            ties = f", {check['near_ties']} near ties" if check["near_ties"] else ""
            value = check["value"]
            shown = value if isinstance(value, str) else f"{value:.4g}"
            lines.append(
                f"  {word:4} {check['stage']:22} {shown:>9} {limit:>9} {check['unit']:7} "
                f"{check['title']}{ties}"
            )
        if candidate["first_failed"]:
            lines.append(f"  the first stage that fails: {candidate['first_failed']}")
        bisected = candidate["bisected"] or {}
        lines += [f"  {each['sentence']}" for each in bisected.get("findings", ())]
        lines += [f"  {note}" for note in bisected.get("notes", ())]
        lines += [f"    {each['sentence']}" for each in bisected.get("engines", ())]
    return "\n".join(lines)


def _ours(folder: Path) -> bool:
    return (folder / DATA).is_file() and (folder / PAGE).is_file()
