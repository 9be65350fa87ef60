"""A recording: what one side computed from known inputs, as a file that can be judged again later.

A folder of two files, `recording.json` and `arrays.npz` (docs/reports.md has the names). Needs
numpy only, so that a device which has nothing but the runtime can write one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mimo_edge.parity.whole_folder import whole_folder
from mimo_edge.runtime.bundle.arrays import DAMAGED, packed, read_arrays
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.files import read_text, write_bytes, write_text
from mimo_edge.runtime.chat.presets import Sampling
from numpy.typing import NDArray

SCHEMA = 1
HEADER, ARRAYS = "recording.json", "arrays.npz"
LIMIT = 512 << 20  # bytes of arrays


@dataclass(frozen=True)
class Sequence:
    """A prompt and how it was answered. The lead's grid, prompt and answer, is what all read."""

    name: str
    task: str  # "asr" or "tts"
    source: str  # the clip that is heard, or the text that is read
    text: Sampling
    audio: Sampling
    seed: int
    max_new: int  # patches
    stop_ids: tuple[int, ...]
    prompt: int  # patches of the lead's prompt


@dataclass(frozen=True)
class Layout:
    """The sizes by which arrays are read."""

    group_size: int
    n_q: int
    empty_id: int
    empty_codes: tuple[int, ...]
    delays: tuple[int, ...]
    vocab_size: int
    sampling_rate: int


@dataclass(frozen=True, eq=False)
class Recording:
    """What a side computed. `lead` is the identity of the side whose inputs it read."""

    identity: Mapping[str, Any]
    lead: str
    layout: Layout
    clips: tuple[str, ...]
    sequences: tuple[Sequence, ...]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the folder whole or not at all. Raises InputError if it is there already, or if
        the arrays are larger than a recording may be."""
        size = sum(array.nbytes for array in self.arrays.values())
        if size > LIMIT:
            raise InputError(
                f"the recording would hold {size >> 20} MB, the limit is {LIMIT >> 20} MB. Record "
                "fewer or shorter clips and texts, or lower --max-new."
            )
        if folder.exists():
            raise InputError(f"{folder} exists already; choose another name, or delete it")
        content = packed(self.arrays)
        header = {
            "schema": SCHEMA,
            **{k: v for k, v in asdict(self).items() if k != "arrays"},
        }
        with whole_folder(folder) as partial:
            write_bytes(partial / ARRAYS, content)
            write_text(partial / HEADER, json.dumps(header, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def open(cls, folder: Path) -> "Recording":
        """Read a recording. Raises InputError if the folder holds none, or a damaged one."""
        path = folder / HEADER
        try:
            raw = json.loads(read_text(path))
            if raw["schema"] != SCHEMA:
                raise InputError(
                    f"{path} has schema version {raw['schema']}, this program reads {SCHEMA}. "
                    "Record again with this version of mimo-edge."
                )
            arrays = read_arrays(folder / ARRAYS, LIMIT)
            return cls(
                raw["identity"],
                raw["lead"],
                Layout(**{k: _tuple(v) for k, v in raw["layout"].items()}),
                tuple(raw["clips"]),
                tuple(_sequence(s) for s in raw["sequences"]),
                arrays,
                raw["measured"],
            )
        except InputError:
            raise
        except (OSError, *DAMAGED) as error:
            raise InputError(
                f"{folder} is not a whole recording ({type(error).__name__}: {error}). "
                "Copy it again, or record again with `mimo-edge record`."
            ) from error


def is_recording(folder: Path) -> bool:
    """Whether a folder says that it is one."""
    return (folder / HEADER).is_file()


def _sequence(raw: Mapping[str, Any]) -> Sequence:
    values = {k: _tuple(v) for k, v in raw.items()}
    return Sequence(
        **{**values, "text": Sampling(**raw["text"]), "audio": Sampling(**raw["audio"])}
    )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
