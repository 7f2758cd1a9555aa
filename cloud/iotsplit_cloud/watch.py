"""Looks after the sessions of what is under way: moves those whose edge is lost, drops those that hold it up.

These are the cloud's decisions that depend on time; who calls writes them down before they are said. No I/O.
"""

from collections import Counter
from typing import Any

import msgspec

from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.settings import FleetSettings, Stragglers
from iotsplit.states import Event
from iotsplit_cloud.desk import Desk
from iotsplit_cloud.evaluation import EvaluationRound
from iotsplit_cloud.members import Members
from iotsplit_cloud.sessions import CloudSession
from iotsplit_cloud.training import TrainingRound

Activity = TrainingRound | EvaluationRound

REMIND_S = 20.0
"""A session that brings nothing for so long is told its assignment again: it may have been lost on its way."""


class Watch:
    """The rules by which sessions are moved and dropped.

    Args:
        members: who is there.
        fleet: how long is waited, and for whom.
        desk: writes the assignments.
    """

    def __init__(self, members: Members, fleet: FleetSettings, desk: Desk) -> None:
        self._members, self._fleet, self._desk = members, fleet, desk

    def look(self, activity: Activity, now: float) -> list[Output]:
        """Move and drop what has to be."""
        said: list[Output] = []
        waits_for = set(activity.waits_for())
        for device, session in list(activity.sessions.items()):
            said += _remind(session, now)
            if session.unfit:
                said += self._drop(activity, device, f"refused: {session.unfit}", now)
            elif self._is_homeless(session, now):
                said += self._move(activity, device, now)
            elif device in waits_for and self._is_too_slow(session, now):
                said += self._drop(activity, device, self._reason(session, now), now)
        return said

    def _is_homeless(self, session: CloudSession, now: float) -> bool:
        edge, incarnation = session.assignment.edge, session.assignment.incarnation
        restarted = edge in self._members and self._members.incarnation(edge) != incarnation
        return restarted or self._members.gone(edge, now)

    def _is_too_slow(self, session: CloudSession, now: float) -> bool:
        late = now - session.progress_at > self._fleet.step_timeout
        return late and self._fleet.stragglers is Stragglers.DROP

    def _reason(self, session: CloudSession, now: float) -> str:
        for agent in (session.assignment.device, session.assignment.edge):
            if self._members.gone(agent, now):
                return f"{agent} is gone"
        return f"nothing came for {self._fleet.step_timeout:.0f} s"

    def _move(self, activity: Activity, device: str, now: float) -> list[Output]:
        """Find the session another edge; without one it waits, and counts as too slow in the end."""
        session = activity.sessions[device]
        edges = self._members.present(Tier.EDGE)
        if not edges:
            slow = self._is_too_slow(session, now)
            return self._drop(activity, device, "no edge is left", now) if slow else []
        busy = Counter(each.assignment.edge for each in activity.sessions.values())
        edge = min(edges, key=lambda name: (busy[name] - (name == session.assignment.edge), name))
        moved = self._desk.move(session.assignment, edge, checkpoint=session.backup.newest(Tier.EDGE))
        activity.move(moved, now)
        return [moved]

    def _drop(self, activity: Activity, device: str, reason: str, now: float) -> list[Output]:
        return [
            Event(kind="session_dropped", agent=device, detail=reason),
            self._desk.rest(device),
            *activity.drop(device, reason, now),
        ]


def _remind(session: CloudSession, now: float) -> list[Output]:
    if now - max(session.progress_at, session.reminded_at) < REMIND_S:
        return []
    session.reminded_at = now
    return [session.assignment]


def arrival(session: CloudSession) -> list[Output]:
    """The event of a session that has come to its new edge and goes on there."""
    move = session.move
    if move is None or move.arrived_at is None:
        return []
    session.move = None
    detail: dict[str, Any] = {
        "from": move.edge,
        "to": session.assignment.edge,
        "epoch": session.assignment.epoch,
        "steps_replayed": max(0, move.step - (move.step if move.resumed is None else move.resumed)),
        "seconds": round(move.arrived_at - move.at, 3),
    }
    text = msgspec.json.encode(detail).decode()
    return [Event(kind="session_moved", agent=session.assignment.device, detail=text)]
