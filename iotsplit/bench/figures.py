"""What a run came to, from its report and its metrics. Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from iotsplit.bench.schemes import Placement
from iotsplit.plan import Labels, Tier
from iotsplit.settings import BaseDtype, Optimizer, TrainingSettings
from iotsplit.states import Metrics

POINTS = 24
"""Of a curve."""
HOPS = ("device_edge", "edge_cloud", "adapters")
BYTES_OF = {BaseDtype.FP32: 4, BaseDtype.BF16: 2, BaseDtype.INT8: 1}
"""Of a frozen value."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Where the peak of an agent is from, in bytes.

    Args:
        imports: Python, torch and the others, before any model.
        weights: frozen parameters.
        optimizer: LoRA parameters with their gradients and AdamW's two means, of all sessions.
        activations: the rest: tensors of the step at hand, buffers, what the allocator keeps.
    """

    imports: int = 0
    weights: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.imports + self.weights + self.optimizer + self.activations


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A point of the training curve: loss of what was learnt since the point before."""

    tokens: int
    seconds: float
    bytes: float
    loss: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What one cell came to.

    Args:
        tiers: the largest agent of each tier.
        peaks: peak memory of `devices` and `servers` together, each the sum of its processes.
        bytes: up and down of each hop, over the whole run.
        network_bytes: of all hops that are a network in this scheme.
        round_s: seconds in which all devices trained one round's steps.
        before: held-out scores before training.
        after: and after it.
    """

    tiers: dict[str, Memory]
    peaks: dict[str, int]
    bytes: dict[str, dict[str, int]]
    network_bytes: int
    round_s: float
    tokens: int
    tokens_per_second: float
    before: dict[str, float]
    after: dict[str, float]
    curve: list[Point]


def figures_of(
    report: Mapping[str, Any],
    metrics: Iterable[Metrics],
    placement: Placement,
    *,
    imports: Mapping[str, int],
    table: int,
) -> Figures:
    """Add up a finished run.

    Args:
        report: its ``report.json``.
        metrics: the lines of its ``metrics.jsonl``.
        placement: who ran what.
        imports: bytes that an agent of each tier takes before it has a model.
        table: values of the embedding: without a head it stays in its file, and its pages come and go.
    """
    training = placement.training
    inert = {Tier.DEVICE: 0 if training.labels is Labels.DEVICE else table}
    hops = {hop: _hop(report["rounds"], hop) for hop in HOPS}
    networks = [hop for hop in HOPS if not (hop == "edge_cloud" and placement.server_hop)]
    moved = sum(hops[hop][way] for hop in networks for way in ("up", "down"))
    agents = [each for each in report["agents"] if each["role"] in set(Tier)]
    seconds = sum(row["wall_s"] for row in report["rounds"])
    curve = _curve([each for each in metrics if _tells(each, training)], moved)
    return Figures(
        tiers={
            str(tier): _taken_apart(
                max(_of(agents, tier), key=lambda each: each["peak_rss_bytes"] or 0),
                placement,
                imports=imports.get(tier, 0),
                inert=inert.get(tier, 0),
            )
            for tier in Tier
            if _of(agents, tier)
        },
        peaks={
            "devices": sum(each["peak_rss_bytes"] or 0 for each in _of(agents, Tier.DEVICE)),
            "servers": sum(
                each["peak_rss_bytes"] or 0 for tier in (Tier.EDGE, Tier.CLOUD) for each in _of(agents, tier)
            ),
        },
        bytes=hops,
        network_bytes=moved,
        round_s=seconds / placement.rounds,
        tokens=sum(each["tokens"] for row in report["rounds"] for each in row["sessions"]),
        tokens_per_second=report["tokens_per_second"],
        before=report["eval"].get("before", {}),
        after=report["eval"].get("after", {}),
        curve=curve,
    )


def _of(agents: Sequence[Mapping[str, Any]], tier: Tier) -> list[Mapping[str, Any]]:
    return [each for each in agents if each["role"] == tier]


def _taken_apart(row: Mapping[str, Any], placement: Placement, *, imports: int, inert: int) -> Memory:
    """An agent's peak; what is expected of each part, as long as something is left."""
    training = placement.training
    left = row["peak_rss_bytes"] or 0
    sessions = sessions_of(placement) if row["role"] == Tier.EDGE else 1
    parts = {
        "imports": imports,
        "weights": (row["part_parameters"] - inert) * BYTES_OF[training.base_dtype],
        "optimizer": optimizer_bytes(row["trainable_parameters"], training) * sessions,
    }
    for name, expected in parts.items():
        parts[name] = max(0, min(left, expected))
        left -= parts[name]
    return Memory(**parts, activations=left)


def sessions_of(placement: Placement) -> int:
    """Most sessions that an edge has at once."""
    most = -(-placement.devices // max(1, placement.edges))
    return min(most, placement.devices_per_edge or most)


def optimizer_bytes(trainable: int, training: TrainingSettings) -> int:
    """Of so many LoRA parameters: the values, their gradients and what the optimizer knows of them."""
    return trainable * 4 * (4 if training.optimizer is Optimizer.ADAMW else 2)


def _hop(rounds: Sequence[Mapping[str, Any]], hop: str) -> dict[str, int]:
    return {way: sum(row["bytes"][hop][way] for row in rounds) for way in ("up", "down")}


def _tells(metrics: Metrics, training: TrainingSettings) -> bool:
    """Whether a line is about the loss of a step, from who computes it."""
    teller = Tier.DEVICE if training.labels is Labels.DEVICE else Tier.CLOUD
    return metrics.role is teller and metrics.session is not None and metrics.loss is not None


def _curve(steps: Sequence[Metrics], moved: int) -> list[Point]:
    """Losses over tokens, in pieces of about as many steps."""
    ordered = sorted(steps, key=lambda each: each.time)
    if not ordered:
        return []
    total = sum(each.tokens or 0 for each in ordered)
    size = -(-len(ordered) // POINTS)
    points, seen = [], 0
    for first in range(0, len(ordered), size):
        piece = ordered[first : first + size]
        tokens = sum(each.tokens or 0 for each in piece)
        seen += tokens
        points.append(
            Point(
                tokens=seen,
                seconds=piece[-1].time - ordered[0].time,
                bytes=moved * seen / max(1, total),
                loss=sum((each.loss or 0.0) * (each.tokens or 0) for each in piece) / max(1, tokens),
            )
        )
    return points


def spread(values: Sequence[float], form: str) -> str:
    """Median, and least to most where they differ.

    Args:
        values: at least one.
        form: how a number is written.
    """
    least, most = f"{min(values):{form}}", f"{max(values):{form}}"
    return f"{statistics.median(values):{form}}" + (f" ({least} to {most})" if least != most else "")
