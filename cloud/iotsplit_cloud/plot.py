"""The picture of a run: loss of each device, memory of each agent."""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from iotsplit.plan import Tier
from iotsplit.states import Metrics
from iotsplit_cloud.report import Report

MANY = 16
"""More lines or bars than this cannot be told apart."""
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
    """Draw loss over steps and peak memory by agent into a PNG; of many only what they span."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second, at the end only

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_losses(left, losses(metrics))
    steps = report.settings["local_steps"]
    ends = [round_ * steps + 0.5 for round_ in range(1, len(report.rounds))]
    left.vlines(ends, 0, 1, transform=left.get_xaxis_transform(), color="0.85", zorder=0)
    left.set(
        xlabel="optimizer step (lines: new adapter version)", ylabel="training loss", title="Loss per device"
    )
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False)
    left.spines[["top", "right"]].set_visible(False)
    peaks = memory(report.agents)
    bars = right.barh(list(peaks), list(peaks.values()), color="0.6")
    right.bar_label(bars, fmt="%.0f", padding=3)
    right.invert_yaxis()
    right.set(xlabel="MiB", title="Peak memory per agent")
    right.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    target.write_bytes(image.getvalue())


def _draw_losses(axes: Any, found: Mapping[str, Sequence[float]]) -> None:
    if len(found) <= MANY:
        for device, values in sorted(found.items()):
            axes.plot(range(1, len(values) + 1), values, label=device, linewidth=1.5)
        return
    longest = max(len(values) for values in found.values())
    columns = [[values[at] for values in found.values() if at < len(values)] for at in range(longest)]
    places = range(1, longest + 1)
    means = [sum(column) / len(column) for column in columns]
    axes.plot(places, means, label=f"mean of {len(found)} devices", linewidth=1.5)
    axes.fill_between(
        places, list(map(min, columns)), list(map(max, columns)), label="lowest to highest", alpha=0.2
    )


def memory(agents: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Peak memory in MiB by agent, or of many the largest of each tier."""
    known = [row for row in agents if row["peak_rss_bytes"]]
    if len(known) <= MANY:
        return {str(row["id"]): row["peak_rss_bytes"] / _MIB for row in known}
    tiers: dict[str, list[int]] = defaultdict(list)
    for row in known:
        tiers[str(row["role"])].append(row["peak_rss_bytes"])
    return {f"largest {role} of {len(peaks)}": max(peaks) / _MIB for role, peaks in tiers.items()}
