"""The picture of a run: loss of each device, memory of each agent."""

import io
from collections import defaultdict
from pathlib import Path

import msgspec

from iotsplit.plan import Tier
from iotsplit.states import Metrics
from iotsplit_cloud.report import Report

_MIB = 1 << 20


def losses(metrics: Path) -> dict[str, list[float]]:
    """Loss of each device's steps in their order, from a ``metrics.jsonl``."""
    found: dict[str, list[float]] = defaultdict(list)
    with metrics.open("rb") as lines:
        for line in lines:
            try:
                row = msgspec.json.decode(line, type=Metrics)
            except msgspec.DecodeError:  # cut short by a full disk
                continue
            if row.role is Tier.CLOUD and row.session is not None and row.loss is not None:
                found[row.session.split("-", 2)[2]].append(row.loss)
    return found


def draw(metrics: Path, report: Report, target: Path) -> None:
    """Draw loss over steps and peak memory by agent into a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second, at the end only

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for device, values in sorted(losses(metrics).items()):
        left.plot(range(1, len(values) + 1), values, label=device, linewidth=1.5)
    steps = report.settings["local_steps"]
    for round_ in range(1, len(report.rounds)):
        left.axvline(round_ * steps + 0.5, color="0.85", zorder=0)
    left.set(
        xlabel="optimizer step (lines: new adapter version)", ylabel="training loss", title="Loss per device"
    )
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False)
    left.spines[["top", "right"]].set_visible(False)
    agents = [row for row in report.agents if row["peak_rss_bytes"]]
    names = [str(row["id"]) for row in agents]
    bars = right.barh(names, [row["peak_rss_bytes"] / _MIB for row in agents], color="0.6")
    right.bar_label(bars, fmt="%.0f", padding=3)
    right.invert_yaxis()
    right.set(xlabel="MiB", title="Peak memory per agent")
    right.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    target.write_bytes(image.getvalue())
