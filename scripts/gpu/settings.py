"""What a run is about: the machine's folders, and how much is measured."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from mimo_edge.runtime.bundle.files import read_text, write_text

FILE = "settings.json"


@dataclass(frozen=True)
class Settings:
    """The same for every step; each reads it from the folder `out`.

    `kit` holds `bundles/golden`, `bundles/nano`, and `hollow/NAME` for each of `models`, the first
    of which is the float one.
    """

    kit: Path
    out: Path
    work: Path  # room for the filled bundles
    device: str = "cuda"  # or cpu: the same steps, to try them
    models: tuple[str, ...] = ("fp16", "int4-edge")
    rows: tuple[int, ...] = (1, 8, 32, 64)
    runs: int = 20
    prompts: tuple[int, ...] = (64, 512)  # patches
    preset: str = "real"  # of the PyTorch baseline
    tests: str = ""  # which of the golden tests, as pytest's -k says it; empty: all
    utterances: Path | None = None  # None: nano's
    against: Path | None = None  # a recorded score

    @property
    def backend(self) -> str:
        """The backend's name on the command line."""
        return f"ort-{self.device}"

    def write(self) -> None:
        """For the steps."""
        raw = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}
        write_text(self.out / FILE, json.dumps(raw))

    @classmethod
    def read(cls, out: Path) -> "Settings":
        """What `write` wrote."""
        raw = json.loads(read_text(out / FILE))
        for field in dataclasses.fields(cls):
            value = raw[field.name]
            if isinstance(value, list):
                raw[field.name] = tuple(value)
            elif value is not None and "Path" in str(field.type):
                raw[field.name] = Path(value)
        return cls(**raw)
