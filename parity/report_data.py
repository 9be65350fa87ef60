"""The report as data: report.json, whose form is report.schema.json."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mimo_edge.parity.along import Parting
from mimo_edge.parity.choices import DIFFERENT, EQUAL, NEAR, Agreement, Choice
from mimo_edge.parity.findings import Bisected
from mimo_edge.parity.judge import SequenceVerdict, Verdict, streaming
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.stage_figures import Figures

SCHEMA = 1
MARKS = {EQUAL: "=", NEAR: "~", DIFFERENT: "x"}  # one for each choice along a sequence


def report(verdicts: Sequence[Verdict], made: str, version: str) -> dict[str, Any]:
    """Everything that the report shows. `made` is a date, `version` that of mimo-edge."""
    own = verdicts[0].own
    return {
        "schema": SCHEMA,
        "mimo_edge": version,
        "made": made,
        "passed": all(verdict.passed for verdict in verdicts),
        "against": _side(own),
        "inputs": {
            "led_by": own.lead,
            "clips": [{"name": n, "samples": len(own.arrays[f"wav/{n}"])} for n in own.clips],
            "sequences": [dataclasses.asdict(s) for s in own.sequences],
            "sampling_rate": own.layout.sampling_rate,
            "group_size": own.layout.group_size,
        },
        "candidates": [_candidate(verdict) for verdict in verdicts],
    }


def plain(value: Any) -> Any:
    """For JSON: what is infinite or NaN as a string, numpy numbers as Python's."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value


def _side(recording: Recording) -> dict[str, Any]:
    streamed = streaming(recording)
    measured = {k: v for k, v in recording.measured.items() if k not in ("answers", "tokens")}
    return {
        **recording.identity,
        **measured,
        "answers": recording.measured.get("answers", {}),
        "seam_snr": min((each.snr for each in streamed), default=None),
        "streaming": [dataclasses.asdict(each) for each in streamed],
    }


def _candidate(verdict: Verdict) -> dict[str, Any]:
    sides = (verdict.own, verdict.candidate)
    tokens = {k: v for side in sides for k, v in side.measured.get("tokens", {}).items()}
    return {
        **_side(verdict.candidate),
        "passed": verdict.passed,
        "first_failed": verdict.first_failed,
        "checks": [dataclasses.asdict(check) for check in verdict.checks],
        "figures": [_figures(stage, of, figures) for stage, of, figures in verdict.figures],
        "heard": [_agreement(a) for a in verdict.heard],
        "codes": [_agreement(a) for a in verdict.codes],
        "sequences": [_sequence(s, tokens) for s in verdict.sequences],
        "bisected": None if verdict.bisected is None else _bisected(verdict.bisected),
    }


def _bisected(bisected: Bisected) -> dict[str, Any]:
    return {
        "findings": [
            {**dataclasses.asdict(f), "born": f.born, "sentence": f.sentence()}
            for f in bisected.findings
        ],
        "layers": [dataclasses.asdict(layer) for layer in bisected.layers],
        "engines": [{**dataclasses.asdict(e), "sentence": e.sentence()} for e in bisected.engines],
        "notes": list(bisected.notes),
    }


def _figures(stage: str, of: str, figures: Figures) -> dict[str, Any]:
    return {"stage": stage, "of": of, **dataclasses.asdict(figures), "required": figures.required}


def _agreement(agreement: Agreement) -> dict[str, Any]:
    return {**dataclasses.asdict(agreement), "share": agreement.share}


def _sequence(verdict: SequenceVerdict, tokens: Mapping[str, str]) -> dict[str, Any]:
    along = verdict.along
    return {
        "name": verdict.sequence.name,
        "text": _marks(along.text),
        "gate": _marks(along.gate),
        "margins": [choice.margin for choice in along.text],
        "kl": along.kl,
        "entropy": along.entropy,
        "entropy_own": along.entropy_own,
        "parting": _parting(verdict.parting, tokens),
        "batched": verdict.in_batch,
        "parting_in_batch": _parting(verdict.batched, tokens),
        "stopped": verdict.stops[0],
        "stopped_own": verdict.stops[1],
        "patches": verdict.lengths[0],
        "patches_own": verdict.lengths[1],
    }


def _marks(choices: Sequence[Choice]) -> str:
    return "".join(MARKS[choice.kind] for choice in choices)


def _parting(parting: Parting | None, tokens: Mapping[str, str]) -> dict[str, Any] | None:
    if parting is None:
        return None
    text = parting.where == "text"
    return {
        "patch": parting.patch,
        "where": parting.where,
        "frame": parting.frame,
        "codebook": parting.codebook,
        "chosen": parting.choice.chosen,
        "expected": parting.choice.expected,
        "said": tokens.get(str(parting.choice.chosen)) if text else None,
        "wanted": tokens.get(str(parting.choice.expected)) if text else None,
        "margin": parting.choice.margin,
        "near_tie": parting.near,
    }
