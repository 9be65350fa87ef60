"""One stage of a bisection: what a piece is fed, run after run, and what the reference computes."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mimo_edge.parity.tap import Feed, Runs, Tap, Values

_PAST, _PRESENT = "past_", "present_"


def _always(name: str, run: int) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Job:
    """One stage. `reference` computes taps and outputs by name. `feeds` is what the piece is fed,
    run after run, given the reference's values; a cache that a feed lacks is the one that the run
    before has left. The first `warm` runs only fill caches; of the others `counts` says which show
    a value that the reference has."""

    stage: str
    piece: str
    reference: Callable[[Sequence[str]], Values]
    feeds: Callable[[Values], list[Feed]]
    needs: tuple[str, ...] = ()  # names of the values that `feeds` reads
    warm: int = 0
    counts: Callable[[str, int], bool] = _always

    def first_run(self, name: str) -> int:
        """The first run that shows a value, of those that count."""
        return next(run for run in itertools.count() if self.counts(name, run))

    def play(
        self, piece: Runs, taps: Sequence[Tap], theirs: Values, own: Sequence[str] = ()
    ) -> tuple[Values, Feed]:
        """Values of taps, and of the piece's `own` outputs; and what the first run was fed that
        counts."""
        found: Values = {name: [] for name in (*(tap.name for tap in taps), *own)}
        outputs: Feed = {}
        first: Feed | None = None
        for run, given in enumerate(self.feeds(theirs), -self.warm):
            left = {into: outputs[name] for name, into in handed_on(outputs).items()}
            feed = {**left, **given}
            values, outputs = piece.run(taps if run >= 0 else (), feed)
            if run < 0:
                continue
            first = feed if first is None else first
            for name, seen in found.items():
                if self.counts(name, run):
                    seen.append(values[name] if name in values else outputs[name])
        assert first is not None
        return found, first


def handed_on(outputs: Iterable[str]) -> dict[str, str]:
    """Caches among a piece's outputs -> the inputs that they are in the run after."""
    return {n: _PAST + n.removeprefix(_PRESENT) for n in outputs if n.startswith(_PRESENT)}
