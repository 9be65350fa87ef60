"""A bench report for people: a table, and a picture of the growth."""

from pathlib import Path

from mimo_edge.runtime.bundle.errors import EnvironmentProblem
from mimo_edge.runtime.bundle.requirements import install
from mimo_edge.scripts.benchmark.report import Report
from mimo_edge.scripts.benchmark.stages import Stage
from mimo_edge.scripts.progress import size


def text(report: Report) -> str:
    """The whole report."""
    most = report.most_held
    lines = [
        f"{report.backend}; memory read {report.read_gb_per_s:.1f} GB/s; loaded in "
        f"{report.load_seconds:.1f} s; at most {size(most.heap)} of heap and "
        f"{size(most.mapped)} of mapped files",
        "",
        f"{'stage':24} {'median':>10} {'p95':>10} {'weights':>10} {'bound':>9} {'read':>10}",
        *map(_line, (*report.stages, *report.reference)),
    ]
    if report.reference and report.stages:
        ratio = report.reference[-1].median_ms / report.stages[-1].median_ms
        lines.append(f"a patch is {ratio:.1f} times faster than the reference in bfloat16")
    if report.foretold:
        lines += ["", f"{'by mimo-edge plan':24} {'foretold':>10} {'median':>10} {'off by':>8}"]
        for told in report.foretold:
            lines.append(
                f"{told.stage:24} {told.foretold_ms:7.2f} ms {told.measured_ms:7.2f} ms "
                f"{100 * told.off:+6.0f} %"
            )
    if report.growth:
        first = report.growth[0].median_ms
        lines += ["", f"{'rows':>4} {'patches held':>12} {'median':>10} {'p95':>10} {'of one':>7}"]
        for grown in report.growth:
            lines.append(
                f"{grown.rows:4} {grown.context:12} {grown.median_ms:7.1f} ms "
                f"{grown.p95_ms:7.1f} ms {grown.median_ms / first:6.2f}x"
            )
    share = 100 * report.overhead_share
    lines += [
        "",
        f"of a generated patch, {share:.0f} % is our Python and the text sampler, "
        f"{100 - share:.0f} % the backend",
    ]
    if (answer := report.answer) is not None:
        lines += [
            f"{answer.patches} patches, {answer.sound:.1f} s of sound: real-time factor "
            f"{answer.loop_rtf:.2f} of the language model, {answer.whole_rtf:.2f} with the codec, "
            f"{answer.streamed_rtf:.2f} streamed",
            f"first sound of the stream after {1e3 * answer.first_sound:.0f} ms, "
            f"{answer.underruns} underruns",
        ]
    return "\n".join(lines)


def plot(report: Report, path: Path) -> None:
    """Milliseconds of a patch over the patches held, and over rows, as a picture."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentProblem(f"--plot needs matplotlib: {install('report')}") from error
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    alone = [grown for grown in report.growth if grown.rows == 1]
    short = [grown for grown in report.growth if grown.context == alone[0].context]
    left.plot([g.context for g in alone], [g.median_ms for g in alone], marker="o")
    left.set(xlabel="patches held", ylabel="ms a patch", xscale="log")
    right.plot([g.rows for g in short], [g.median_ms for g in short], marker="o")
    right.set(xlabel="rows", ylabel="ms a patch")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(path)


def _line(stage: Stage) -> str:
    return (
        f"{stage.stage:24} {stage.median_ms:7.2f} ms {stage.p95_ms:7.2f} ms "
        f"{stage.weight_mb:7.1f} MB {stage.bound_ms:6.2f} ms {stage.gb_per_s:5.1f} GB/s"
    )
