"""Recordings as Polygraphy saves results, for `polygraphy inspect data` and its comparisons.

Only the form is written here: Polygraphy is not needed.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from mimo_edge.parity.recording import Recording
from mimo_edge.runtime.bundle.files import write_text
from numpy.typing import NDArray

# inputs, and what only one of two sides has: Polygraphy compares what both have
LEFT_OUT = ("wav/", "grid/", "batched/", "margins/", "scores/", "seams/")


def write_run_results(recording: Recording, path: Path) -> None:
    """One iteration of one runner, whose outputs are the arrays that every recording has."""
    outputs = {
        name: _array(array)
        for name, array in recording.arrays.items()
        if not name.startswith(LEFT_OUT)
    }
    name = f"{recording.identity['name']}, {recording.identity['runs_on']}"
    iteration = {
        "outputs": outputs,
        "runtime": recording.measured.get("seconds_per_patch"),
        "runner_name": name,
        "polygraphy_class": "IterationResult",
    }
    results = {"lst": [[name, [iteration]]], "polygraphy_class": "RunResults"}
    write_text(path, json.dumps(results) + "\n")


def _array(array: NDArray[Any]) -> dict[str, Any]:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return {"array": encoded, "polygraphy_class": "ndarray"}
