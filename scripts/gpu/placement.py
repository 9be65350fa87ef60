"""Where ONNX Runtime puts every operator of a piece, by its own account."""

from collections import Counter
from typing import Any

from mimo_edge.runtime.backends.ort import PROVIDERS, OrtBackend
from mimo_edge.scripts.gpu.records import Records

RECORDED = {"session.record_ep_graph_assignment_info": "1"}
# what a step spends its time in: on the CPU, each of them would cost a copy of its inputs and more
HEAVY = ("Attention", "TensorScatter", "MatMul", "MatMulNBits", "Gemm", "Conv", "ConvTranspose")


def placements(session: Any) -> Counter[tuple[str, str]]:
    """How many nodes of each (provider, operator); the session was opened with `RECORDED`."""
    return Counter(
        (part.ep_name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )


def record_placements(backend: OrtBackend, name: str, records: Records) -> bool:
    """Write down where the nodes of a bundle's pieces are; returns whether none of the heavy ones
    is elsewhere than on the backend's device."""
    home, well = PROVIDERS[backend.device], True
    for piece in backend.bundle.manifest.pieces:
        found = placements(backend.session(piece))
        away = {op: n for (provider, op), n in sorted(found.items()) if provider != home}
        wrong = {op: n for op, n in away.items() if op in HEAVY}
        there = found.total() - sum(away.values())
        small = ", ".join(f"{n} {op}" for op, n in away.items()) or "none"
        records.add(f"{name} {piece}", f"{there} nodes on {backend.device}, elsewhere: {small}")
        if wrong:
            records.add(f"{name} {piece}", f"WRONG: {wrong} are not on {backend.device}")
        well = well and not wrong
    return well
