"""Pictures of a setting: loss over tokens, time and bytes, and where memory goes."""

import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any

from iotsplit.bench.figures import Figures
from iotsplit.bench.outcomes import Outcome
from iotsplit.bench.schemes import TITLES, Scheme
from iotsplit.errors import UsageError

COLOURS = {
    Scheme.SPLITLLM: "#0b6e4f",
    Scheme.SFL: "#c8553d",
    Scheme.SL: "#e0a458",
    Scheme.FL: "#3d5a80",
    Scheme.CENTRAL: "#7f7f7f",
}
PARTS = {"imports": "#d9d9d9", "weights": "#9ecae1", "optimizer": "#fdae6b", "activations": "#74c476"}
MB = 1e6

Done = Mapping[Scheme, Sequence[Outcome]]


def check() -> None:
    """Look whether pictures can be drawn.

    Raises:
        UsageError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("matplotlib is missing", fix="pip install 'iotsplit[bench]'")


def losses(schemes: Done) -> bytes:
    """Training loss over tokens, over seconds and over bytes, a line for each seed; as PNG."""
    figure = _figure((12, 3.8))
    axes = figure.subplots(1, 3, sharey=True)
    for scheme, outcomes in schemes.items():
        for number, found in enumerate(_figures(outcomes)):
            for place, key in enumerate(("tokens", "seconds", "bytes")):
                scale = MB if key == "bytes" else 1.0
                axes[place].plot(
                    [getattr(point, key) / scale for point in found.curve],
                    [point.loss for point in found.curve],
                    color=COLOURS[scheme],
                    label=None if number else TITLES[scheme],
                    linewidth=1.5,
                )
    for axis, name in zip(axes, ("loss tokens", "seconds of training", "MB moved over networks"), strict=True):
        axis.set(xlabel=name)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="training loss")
    axes[0].legend(frameon=False)
    return _png(figure)


def memory(schemes: Done) -> bytes:
    """Peak memory of the largest agent of each tier by what takes it, and of all servers; as PNG."""
    found = {scheme: figures[0] for scheme, outcomes in schemes.items() if (figures := _figures(outcomes))}
    figure = _figure((12, 0.9 + 0.42 * max(1, sum(len(each.tiers) for each in found.values()))))
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_tiers(left, found)
    titles = [TITLES[scheme] for scheme in found]
    for offset, kind in ((-0.2, "devices"), (0.2, "servers")):
        values = [each.peaks[kind] / MB for each in found.values()]
        colour = "#9ecae1" if kind == "devices" else "#3d5a80"
        bars = right.barh(
            [at + offset for at in range(len(values))], values, height=0.38, label=kind, color=colour
        )
        right.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    right.set_yticks(range(len(titles)), titles)
    right.set(xlabel="MB", title="All processes together")
    for axis in (left, right):
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _draw_tiers(axis: Any, found: Mapping[Scheme, Figures]) -> None:
    rows = [
        (f"{TITLES[scheme]} {tier}", memory)
        for scheme, each in found.items()
        for tier, memory in each.tiers.items()
    ]
    names = [name for name, _ in rows]
    reached = [0.0] * len(rows)
    for part, colour in PARTS.items():
        values = [getattr(memory, part) / MB for _, memory in rows]
        bars = axis.barh(names, values, left=reached, label=part, color=colour)
        reached = [before + value for before, value in zip(reached, values, strict=True)]
    if rows:
        axis.bar_label(bars, labels=[f"{value:.0f}" for value in reached], padding=3, fontsize=8)
    axis.set(xlabel="MB", title="Peak of the largest agent")


def _figures(outcomes: Sequence[Outcome]) -> list[Figures]:
    return [each.figures for each in outcomes if each.figures is not None]


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second, when something is drawn

    return Figure(figsize=size, layout="constrained")


def _png(figure: Any) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()
