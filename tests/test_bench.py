"""`mimo-edge bench`: what a stage must read, and numbers of runs that are none."""

from pathlib import Path

import pytest
from mimo_edge.scripts.benchmark.foretold import Foretold
from mimo_edge.scripts.benchmark.held import Held
from mimo_edge.scripts.benchmark.report import Report
from mimo_edge.scripts.benchmark.stages import Stage, weights_read
from mimo_edge.scripts.benchmark.table import text
from mimo_edge.scripts.cli import main

from tests.bundles import SPEC, hollow


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
def test_weights_read(tmp_path: Path, precision: str, width: int) -> None:
    bundle = hollow(tmp_path / "bundle", precision)
    stored = {piece: bundle.weights(piece).bytes for piece in bundle.manifest.pieces}
    assert weights_read(bundle, "backbone", 3) == stored["backbone"]
    unread = (SPEC.vocab_size - 3) * SPEC.hidden_size * width
    assert weights_read(bundle, "patch_encoder", 3) == stored["patch_encoder"] - unread > 0
    sub_steps = SPEC.group_size + max(SPEC.delays)
    assert sub_steps > 1
    assert weights_read(bundle, "patch_decoder", 3) == sub_steps * stored["patch_decoder"]


@pytest.mark.parametrize("option", ["--runs", "--rows"])
def test_nothing_to_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert main(["bench", str(tmp_path / "none"), option, "0"]) == 2
    assert f"{option} 0 is too small: give 1 or more" in capsys.readouterr().err


def test_what_is_foretold_is_shown_beside_what_was_measured() -> None:
    told = Foretold("patch, 1 rows", 12.0, 10.0)
    assert told.off == pytest.approx(0.2)
    stage = Stage("patch, 1 rows", 10.0, 11.0, 9.0, 100.0, 5.0)
    held = Held(0, 0)
    shown = text(Report("here", 30.0, 1.0, held, 0.1, [stage], [told], [], None, []))
    assert "patch, 1 rows 12.00 ms 10.00 ms +20 %" in " ".join(shown.split())
