"""The work folder: quantised bundles and figures, of which nothing is made twice."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimo_edge.engines import recipe
from mimo_edge.engines.calibration import Calibration
from mimo_edge.engines.components import COMPONENTS, component_of
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.engines.recipe import CALIBRATED, FLOAT, Recipe, Weights
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.files import write_text

Figures = dict[str, Any]
OWN = "fp32"  # what the float bundle is called among the recipes
ALL = "all"


@dataclass(frozen=True)
class Subject:
    """A recipe, or what it does to one component alone; the float bundle itself has none."""

    recipe: Recipe | None
    component: str = ALL

    @classmethod
    def parse(cls, text: str) -> "Subject":
        """`int4-edge`, `mine.toml`, or `int4-edge:patch_decoder`. Raises InputError."""
        name, _, component = text.partition(":")
        if component and component not in COMPONENTS:
            raise InputError(f"there is no component {component!r}; choose of {COMPONENTS}")
        return cls(recipe.load(name), component or ALL)

    @property
    def name(self) -> str:
        """For tables."""
        if self.recipe is None:
            return OWN
        return self.recipe.name + ("" if self.component == ALL else f":{self.component}")

    @property
    def made(self) -> Recipe:
        """The recipe as it is followed."""
        assert self.recipe is not None
        return self.recipe if self.component == ALL else only(self.recipe, self.component)


def only(chosen: Recipe, component: str) -> Recipe:
    """A recipe for one component alone; the others stay as they are computed. (The presets'
    exceptions begin with a name of the component that they are of.)"""
    components = {
        name: part if name == component else replace(part, weights=Weights(), activations=FLOAT)
        for name, part in chosen.components.items()
    }
    kept = tuple(e for e in chosen.exceptions if component_of(e[0]) == component)
    spared = chosen.float_inputs if components[component].activations in CALIBRATED else ()
    return replace(chosen, components=components, exceptions=kept, float_inputs=spared)


@dataclass(frozen=True)
class Workshop:
    """`own` is the float bundle, `utterances` the index of the set that all is judged on.

    Files go by what they depend on, so that what two recipes have in common is measured once.
    """

    folder: Path
    own: Bundle
    utterances: Path
    calibration: Calibration | None = None

    def bundle(self, subject: Subject) -> Path:
        """The subject's bundle, made if it is not there."""
        if subject.recipe is None:
            return self.own.folder
        folder = self._place("bundle", self._key(subject))
        if not folder.is_dir():
            chosen = subject.made
            known = self.calibration if chosen.calibrated else None
            quantize_bundle(self.own, chosen, folder, calibration=known)
        return folder

    def known(self, subject: Subject, what: str) -> Figures | None:
        """Figures that were taken before; None if there are none."""
        path = self._figures(subject, what)
        if not path.is_file():
            return None
        found: Figures = json.loads(path.read_text(encoding="utf-8"))
        return found

    def figures(self, subject: Subject, what: str, make: Callable[[], Figures]) -> Figures:
        """Figures of a subject; taken and kept if there are none."""
        found = self.known(subject, what)
        if found is None:
            found = make()
            write_text(self._figures(subject, what), json.dumps(found) + "\n")
        return found

    def _key(self, subject: Subject) -> str:
        """What a subject's bundle depends on, beside the code."""
        parts = [self.own.manifest.source]
        if subject.recipe is not None:
            parts.append(repr(replace(subject.made, name="", about="")))
            if subject.made.calibrated and self.calibration is not None:
                parts.append(self.calibration.about.work)
        return _digest(*parts)

    def _figures(self, subject: Subject, what: str) -> Path:
        said = _digest(self.utterances.read_text(encoding="utf-8"))
        return self._place("figures", f"{self._key(subject)}.{said}.{what}.json")

    def _place(self, kind: str, name: str) -> Path:
        place = self.folder / kind
        place.mkdir(parents=True, exist_ok=True)
        return place / name


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
