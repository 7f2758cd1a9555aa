"""The report of a run, built up as it goes on: ``report.json``. Keys keep their meaning."""

import math
import statistics
from collections.abc import Container, Mapping, Sequence
from typing import Any

import msgspec

from iotsplit import __version__
from iotsplit.plan import Labels, Tier
from iotsplit.settings import TrainingSettings
from iotsplit.states import Metrics
from iotsplit_cloud.evaluation import EvaluationRound, Tally
from iotsplit_cloud.ledger import Ledger
from iotsplit_cloud.members import Member
from iotsplit_cloud.training import TrainingRound

LEAVES_DEVICE = {
    Labels.CLOUD: ["activations", "token ids of the training text (as labels)", "LoRA updates", "metrics"],
    Labels.DEVICE: ["activations", "gradients of the loss", "the loss as a number", "LoRA updates", "metrics"],
}
"""What anyone who reads the bus, the edge or the cloud can see, by where the labels are."""

LEAVES_WHOLE_DEVICE = ["the loss as a number", "LoRA updates", "metrics"]
"""The same of a device that holds the whole model."""


Row = Mapping[str, Any]
"""What the report says of one round."""


class Report(msgspec.Struct, kw_only=True):
    """What ``report.json`` holds; rounds and events are lines of files of their own until it is written."""

    version: str = __version__
    fleet: str
    seed: int
    model: dict[str, Any]
    cut: tuple[int, int]
    labels: str
    leaves_device: list[str]
    codec: str
    aggregation: str
    settings: dict[str, Any]
    rounds: list[Any] = []
    eval: dict[str, Any] = {}
    agents: list[dict[str, Any]] = []
    ledger: dict[str, int] = {}
    events: list[Any] = []
    tokens_per_second: float = 0.0
    wall_s: float = 0.0
    state: str = "running"
    reason: str = ""


def new_report(fleet: str, model: dict[str, Any], settings: TrainingSettings) -> Report:
    """A report with nothing in it yet."""
    return Report(
        fleet=fleet,
        seed=settings.seed,
        model=model,
        cut=settings.cut,
        labels=settings.labels,
        leaves_device=LEAVES_WHOLE_DEVICE if settings.federated else LEAVES_DEVICE[settings.labels],
        codec=settings.codec,
        aggregation=settings.aggregation,
        settings=msgspec.to_builtins(settings),
    )


def session_rows(training: TrainingRound) -> list[dict[str, Any]]:
    """A row for each session that was not dropped."""
    return [
        {
            "session": session.assignment.session,
            "device": device,
            "edge": session.assignment.edge,
            "steps": len(session.losses),
            "tokens": session.tokens,
            "loss_first": session.losses[0] if session.losses else None,  # a federated device's may be lost
            "loss_last": session.losses[-1] if session.losses else None,
        }
        for device, session in training.sessions.items()
        if session.tokens
    ]


def bytes_row(
    metrics: Mapping[tuple[str, Tier], Metrics], sessions: Sequence[str], *, up: int, down: int
) -> dict[str, dict[str, int]]:
    """Payload bytes of a round by hop, as counted by devices and edges.

    Args:
        metrics: the last of each session and tier.
        sessions: ids of the round's sessions.
        up: bytes of LoRA updates.
        down: bytes of adapter sections that were fetched.
    """

    def total(tier: Tier, side: str, table: str) -> int:
        found = [metrics[session, tier] for session in sessions if (session, tier) in metrics]
        return sum(getattr(each, table).get(side, 0) for each in found)

    return {
        "device_edge": {
            "up": total(Tier.DEVICE, "lan", "sent_bytes"),
            "down": total(Tier.DEVICE, "lan", "received_bytes"),
        },
        "edge_cloud": {
            "up": total(Tier.EDGE, "wan", "sent_bytes"),
            "down": total(Tier.EDGE, "wan", "received_bytes"),
        },
        "adapters": {"up": up, "down": down},
    }


def codec_row(errors: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float | int]]:
    """What the codec has lost in a round, ‖decoded - x‖ / ‖x‖ of the tensors that were checked.

    Args:
        errors: by who sent what, such as `device activation`.
    """
    return {
        hop: {"median": statistics.median(found), "largest": max(found), "checked": len(found)}
        for hop, found in sorted(errors.items())
    }


def enter_scores(
    report: Report, evaluation: EvaluationRound, when: str, *, answering: Container[str]
) -> dict[str, float | int]:
    """Enter an evaluation as `before` or `after`; gives the sums over all devices.

    Args:
        report: entered into.
        evaluation: is over.
        when: ``before`` or ``after`` training.
        answering: devices whose held-out data are completions.
    """
    total = Tally()
    devices = report.eval.setdefault("devices", {})
    for device, tally in evaluation.tallies().items():
        devices.setdefault(device, {})[when] = tally.summary(completions=device in answering)
        total.add(tally)
    every = all(device in answering for device in evaluation.sessions)
    report.eval[when] = total.summary(completions=every)
    summed: dict[str, float | int] = report.eval[when]
    return summed


def enter_best(
    report: Report, evaluation: EvaluationRound, version: int, *, round_: int, answering: Container[str]
) -> None:
    """Enter an evaluation as `best` too if no version's held-out loss was less, of the devices scored in both.

    Args:
        report: entered into; `enter_scores` comes first.
        evaluation: is over.
        version: what was scored.
        round_: that made it; 0 is before training.
        answering: devices whose held-out data are completions.
    """
    tallies, devices = evaluation.tallies(), report.eval["devices"]
    best = {device: scores["best"] for device, scores in devices.items() if "best" in scores}
    both = sorted(best.keys() & tallies.keys())
    before = sum(best[device]["loss"] * best[device]["tokens"] for device in both) if both else math.inf
    now = sum(tallies[device].loss_sum for device in both or sorted(tallies))
    if not tallies or not now < before:  # which what is no number is not
        return
    for scores in devices.values():
        scores.pop("best", None)
    summed = enter_scores(report, evaluation, "best", answering=answering)
    report.eval["best"] = {"adapter_version": version, "round": round_, **summed}


def agent_rows(members: Sequence[Member], peaks: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row for each agent that was ever there."""
    return [
        {
            "id": member.birth.agent,
            "role": member.birth.role,
            "pid": member.birth.pid,
            "threads": member.birth.threads,
            "peak_rss_bytes": peaks.get(member.birth.agent, 0),
            "part_parameters": member.birth.part_parameters,
            "trainable_parameters": member.birth.trainable_parameters,
        }
        for member in members
    ]


def ledger_row(ledger: Ledger) -> dict[str, int]:
    """Expected = applied, nothing lost, nothing twice."""
    return {
        "expected": ledger.expected,
        "applied": ledger.applied,
        "lost": ledger.lost,
        "duplicated": ledger.duplicated,
    }
