"""Makes a case of layers: engines that show all states, and the reference's own (`engine_case`)."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mimo_edge.engines.apart import Request, build_apart
from mimo_edge.engines.planner import estimate_piece
from mimo_edge.engines.target import Target
from mimo_edge.parity.bisect_jobs import jobs
from mimo_edge.parity.engine_bisect import SUSPECTS
from mimo_edge.parity.engine_case import Case, Stage, plan_of
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.reference_side import ReferenceSide
from mimo_edge.parity.tap import Tap, own_output
from mimo_edge.parity.tapped_graph import TappedGraph
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import Identity
from mimo_edge.runtime.bundle.files import hash_file

Report = Callable[..., None]


def make_case(
    side: ReferenceSide,
    bundle: Bundle,
    identity: Identity,
    led: Recording,
    failed: str,
    allowed: float,
    folder: Path,
    on_progress: Report,
) -> list[str]:
    """Fill a folder for the stages that a failed one comes from, which are returned. `identity` is
    that of the engines which failed. Raises what `build_apart` does, InputError for more states
    than a case may hold."""
    chunk = identity.pieces["patch_encoder"].profiles[0]["text_ids"][2][1]
    target = Target(identity.product, identity.capabilities)
    stages: list[Stage] = []
    for job in jobs(side, bundle, led, longest=chunk):
        if job.stage not in SUSPECTS[failed]:
            continue
        path, profile = bundle.path(job.piece), identity.pieces[job.piece].profiles[0]
        graph = TappedGraph(job.piece, path, bundle.model.n_q)
        taps = [tap for tap in graph.taps if tap.name != own_output(job.piece)]
        plan = plan_of(folder, job.piece)
        if not plan.exists():
            weights = bundle.weight_bytes(job.piece)
            seconds = estimate_piece(job.piece, weights, graph.nodes).seconds
            on_progress(f"building {job.piece} with its layers, about {seconds:.0f} s", 0, 0)
            request = Request(target, path, (profile,), identity.max_seq)
            build_apart(request, graph.with_outputs(taps), plan)
        on_progress(f"computing the layers of {job.stage}", 0, 0)
        stages.append(Stage.of(job, _weights(graph, taps), allowed, profile))
    plans = {stage.piece: hash_file(plan_of(folder, stage.piece)) for stage in stages}
    Case(bundle.identity, tuple(stages), plans).save(folder)
    return [stage.stage for stage in stages]


def _weights(graph: TappedGraph, taps: Sequence[Tap]) -> dict[str, list[str]]:
    """Of each tap, those between it and the norm before it."""
    found: dict[str, list[str]] = {}
    before: Tap | None = None
    for tap in taps:
        found[tap.name] = graph.weights_between(before, tap)
        if tap.is_norm:
            before = tap
    return found
