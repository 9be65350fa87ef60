"""What a run has found, written down as it goes: a line for each finding, on the disk at once."""

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

FILE, TABLE = "records.jsonl", "table.txt"


@dataclass(frozen=True)
class Record:
    """One finding of a step. `value` is a number with a unit, or words."""

    step: str
    what: str
    value: float | str
    unit: str = ""
    at: float = 0.0  # unix time


class Records:
    """The findings of a step, in a file that the steps share."""

    def __init__(self, folder: Path, step: str) -> None:
        self._path, self._step = folder / FILE, step

    def add(self, what: str, value: float | str, unit: str = "") -> None:
        """Write one down; it is on the disk when this returns."""
        record = Record(self._step, what, value, unit, round(time.time(), 1))
        line = json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def read_records(folder: Path) -> list[Record]:
    """All that was written down; a line that was cut is left out."""
    records = []
    path = folder / FILE
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(Record(**json.loads(line)))
        except ValueError:
            continue
    return records


def table(records: list[Record]) -> str:
    """For people: the steps one after the other."""
    lines, step = [], None
    for record in records:
        if record.step != step:
            step = record.step
            lines += ["", step]
        words = isinstance(record.value, str)
        value = record.value if words else f"{record.value:>12,.4g} {record.unit}"
        lines.append(f"  {record.what:52} {value}".rstrip())
    return "\n".join(lines).strip() + "\n"
