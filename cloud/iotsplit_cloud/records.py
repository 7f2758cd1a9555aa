"""What the cloud keeps on its own disk: said by the role, written by the store."""

from collections.abc import Mapping
from dataclasses import dataclass

from iotsplit.role import Local
from iotsplit.states import Metrics
from iotsplit_cloud.journal import CarriedSession
from iotsplit_cloud.report import Report, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard(Local):
    """Metrics of another agent, for the log of the run."""

    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestone(Local):
    """A consistent state of the fleet between rounds: what a restarted cloud goes on from.

    Args:
        report: without its rounds and events, which only ever become more.
        row: of the newest round, once there is one.
        paused: no round is begun until somebody says so.
    """

    report: Report
    row: Row | None = None
    round: int
    version: int
    carried: Mapping[str, CarriedSession]
    paused: bool = False
    final: bool = False
