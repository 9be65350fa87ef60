"""Where it broke on TensorRT: a search with few engines, each with one output more.

TensorRT fuses what lies between outputs, so an engine with another output is another engine, and
its numbers may be others. So no engine shows all layers. Of the first piece whose engine, on the
reference's own inputs, is out of tolerance, engines are built that show one state each beside the
piece's own outputs; each halves what is left, between a state that is right and one that is not.
Every such engine is held against that of the build: if the error is gone from it, it lies in what
TensorRT fuses there, and no layer is named.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from mimo_edge.parity.bisect_jobs import jobs
from mimo_edge.parity.engine_maker import EngineMaker
from mimo_edge.parity.engine_piece import EnginePiece
from mimo_edge.parity.findings import Bisected, Finding, TappedEngine
from mimo_edge.parity.job import Job
from mimo_edge.parity.own_output import OwnOutput
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.reference_side import ReferenceSide
from mimo_edge.parity.tap import (
    CODES,
    HEAD_SCORES,
    Feed,
    Tap,
    given_of,
    output_of,
    own_output,
)
from mimo_edge.parity.tapped_graph import TappedGraph
from mimo_edge.parity.tolerances import worst_snr
from mimo_edge.runtime.bundle.engine import Profile
from mimo_edge.runtime.bundle.errors import EngineError, EnvironmentProblem, ResourceError
from mimo_edge.runtime.bundle.manifest import TensorSpec

ANOTHER = (
    "An engine of TensorRT with one output more is another engine: its fusions and numbers may "
    "differ. Each that was built is held against the engine of the build."
)
NOT_RUN = (EngineError, EnvironmentProblem, ResourceError)  # of an engine that is to be looked at
_ALONG = ("patch_encoder", "backbone, prefill", "backbone, decode step")
# the first stage out of tolerance -> the stages of a bisection that it comes from
SUSPECTS: Mapping[str, tuple[str, ...]] = {
    "tokenizer_encoder": ("tokenizer_encoder",),
    "patch_encoder": _ALONG[:1],
    "backbone, prefill": _ALONG[:2],
    "backbone, decode step": _ALONG,
    "text": _ALONG,
    "patch_decoder": ("patch_decoder",),
    "tokenizer_decoder": ("tokenizer_decoder",),
    "tokenizer_decoder, streamed": ("tokenizer_decoder",),
}


class EngineBisection:
    """Searches the engines of a backend, on the inputs of a recording."""

    def __init__(
        self, side: ReferenceSide, maker: EngineMaker, led: Recording, allowed: float
    ) -> None:
        self._side, self._maker, self._backend = side, maker, maker.backend
        self._led, self._allowed = led, allowed
        self._engines: list[TappedEngine] = []
        self._notes = [ANOTHER]

    def run(self, failed: str | None) -> Bisected:
        """Search for what makes the stage fail that failed first, if any did."""
        finding = None if failed is None else self._look(failed)
        if failed is None:
            self._notes = ["Every stage is in tolerance: no engine was built to look at layers."]
        found = () if finding is None else (finding,)
        return Bisected(found, engines=tuple(self._engines), notes=tuple(self._notes))

    def _look(self, failed: str) -> Finding | None:
        suspects = SUSPECTS.get(failed, ())
        if not suspects:
            self._notes = [f"{failed}: there are no layers to look at; no engine was built."]
            return None
        bundle = self._backend.bundle
        chunk = self._profile("patch_encoder")["text_ids"][2][1]
        for job in jobs(self._side, bundle, self._led, longest=chunk):
            if job.stage not in suspects:
                continue
            search: _Search | None = None
            try:  # also the engine of the build may lack the memory to run
                search = _Search(job, self._maker, self._allowed, self._profile(job.piece))
                if search.is_wrong:
                    return search.run()
            except NOT_RUN as error:
                self._notes.append(f"{job.stage}: the search ended early. {error}")
                return None
            finally:
                if search is not None:
                    self._engines += search.engines
                    self._notes += search.notes
        self._notes = [
            f"{failed}: on the first clip and the first answer the engines of "
            f"{', '.join(suspects)} are in tolerance, each on the reference's own input. No engine "
            "was built to look at layers."
        ]
        return None

    def _profile(self, piece: str) -> Profile:
        return self._backend.identity.pieces[piece].profiles[0]


class _Search:
    """One stage of one piece."""

    def __init__(self, job: Job, maker: EngineMaker, allowed: float, profile: Profile) -> None:
        self._job, self._maker, self._allowed, self._profile = job, maker, allowed, profile
        backend = maker.backend
        bundle = backend.bundle
        self._spec = bundle.piece(job.piece)
        self._graph = TappedGraph(job.piece, bundle.path(job.piece), bundle.model.n_q)
        name = own_output(job.piece)
        theirs = job.reference([*job.needs, name])
        as_it_is = EnginePiece(backend, backend.engine(job.piece), self._spec, profile)
        values, self._feed = job.play(as_it_is, (), theirs, (name,))
        self._own = OwnOutput(name, values[name], theirs[name], allowed)
        self.engines: list[TappedEngine] = []
        self.notes: list[str] = []

    @property
    def is_wrong(self) -> bool:
        """Whether the engine of the build is, on these inputs."""
        return self._own.is_wrong()

    def run(self) -> Finding | None:
        """Halve what is left, until of two states that follow each other one is right."""
        chain = self._chain()
        right, wrong = (0 if self._graph.is_input(chain[0]) else -1), len(chain)
        near = self._own.near
        self._maker.begin(self._job.stage, math.ceil(math.log2(wrong - right)) + 1)
        while wrong - right > 1:
            middle = (right + wrong) // 2
            seen = self._tapped(chain[middle])
            self.engines.append(seen)
            if not seen.wrong:
                self._note_gone(seen, chain[max(right, 0) : right + 1], chain[wrong : wrong + 1])
                return None
            if seen.snr >= self._allowed:
                right = middle
            else:
                wrong, near = middle, seen.snr
        before = chain[right] if right >= 0 else None
        if wrong < len(chain):
            return self._finding(before, chain[wrong], near)
        if self._own.name != CODES:
            return self._finding(before, Tap(self._own.name, self._own.name), near)
        self.notes.append(
            f"{self._job.stage}: every state up to {chain[-1].name} is in tolerance. What is wrong "
            "comes after it, where codes are chosen."
        )
        return None

    def _chain(self) -> list[Tap]:
        """Taps of which each follows from the one before: of the heads, the worst."""
        norms = [tap for tap in self._graph.taps if tap.is_norm]
        heads = [tap for tap in self._graph.taps if tap.name.startswith(HEAD_SCORES)]
        if not heads:
            return norms
        differ = [a != b for a, b in zip(self._own.as_it_is, self._own.theirs, strict=True)]
        return [*norms, heads[int(np.sum(differ, axis=(0, 1)).argmax())]]  # [run, row, codebook]

    def _tapped(self, tap: Tap) -> TappedEngine:
        """Build the piece with one output more, and look."""
        theirs = self._job.reference([*self._job.needs, tap.name])
        shown = (*self._spec.outputs, TensorSpec(output_of(tap.name), "float32", ()))
        spec, model = replace(self._spec, outputs=shown), self._graph.with_outputs([tap])
        with self._maker.engine(self._job.piece, model, spec, self._profile) as engine:
            mine, _ = self._job.play(engine, [tap], theirs, (self._own.name,))
        own = mine[self._own.name]
        return TappedEngine(
            self._job.stage,
            tap.name,
            worst_snr(mine[tap.name], theirs[tap.name]),
            self._allowed,
            self._own.name,
            self._own.apart(own),
            self._own.is_wrong(own),
        )

    def _finding(self, before: Tap | None, tap: Tap, near: float) -> Finding:
        """What is known by now is told, whatever becomes of the segment alone."""
        alone: float | None = None
        if before is not None:
            try:
                alone = self._alone(before, tap)
            except NOT_RUN as error:
                self.notes.append(
                    f"{self._job.stage}: whether the error was born there is not known, for the "
                    f"segment alone could not be run. {error}"
                )
        return Finding(
            self._job.stage,
            tap.name,
            None if before is None else before.name,
            near,
            self._allowed,
            alone,
            tuple(self._graph.weights_between(before, tap)),
        )

    def _alone(self, start: Tap, end: Tap) -> float:
        """How near the segment is as an engine of its own, on the reference's state."""
        theirs = self._job.reference([*self._job.needs, start.name, end.name])
        state = theirs[start.name][self._job.first_run(end.name)].astype(np.float32)
        model, feed = self._graph.segment(start, end), {**self._feed, given_of(start): state}
        inputs, outputs = (
            {port.name for port in ports} for ports in (model.graph.input, model.graph.output)
        )
        spec = replace(
            self._spec,
            inputs=(
                *(port for port in self._spec.inputs if port.name in inputs),
                TensorSpec(given_of(start), "float32", state.shape),
            ),
            outputs=(
                *(port for port in self._spec.outputs if port.name in outputs),
                TensorSpec(output_of(end.name), "float32", ()),
            ),
        )
        profile = {port.name: (self._shape(port, feed),) * 3 for port in spec.inputs}
        with self._maker.engine(self._job.piece, model, spec, profile) as engine:
            values, _ = engine.run([end], feed)
        return worst_snr([values[end.name]], theirs[end.name][:1])

    def _shape(self, port: TensorSpec, feed: Feed) -> tuple[int, ...]:
        """Of what is fed, a cache being as long as that of the build."""
        return tuple(
            self._profile[port.name][2][place] if axis == "capacity" else size
            for place, (axis, size) in enumerate(zip(port.axes, feed[port.name].shape, strict=True))
        )

    def _note_gone(self, seen: TappedEngine, right: Sequence[Tap], wrong: Sequence[Tap]) -> None:
        ends = [f"{tap.name} is still right" for tap in right]
        ends += [f"{tap.name} is wrong" for tap in wrong]
        self.notes.append(
            f"{self._job.stage}: with {seen.tap} as an output the error is gone. So it lies in "
            "what TensorRT fuses across that place, and no layer is named."
            + (f" Of the states around it, {' and '.join(ends)}." if ends else "")
        )
