"""Looks after the sessions of what is under way: moves those whose edge is lost, drops those that hold it up.

These are the cloud's decisions that depend on time; who calls writes them down before they are said. No I/O.
"""

from collections import Counter

from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.settings import FleetSettings, Stragglers
from iotsplit.states import Assignment, Event
from iotsplit_cloud.carried import Carried
from iotsplit_cloud.desk import Desk
from iotsplit_cloud.evaluation import EvaluationRound
from iotsplit_cloud.members import Members
from iotsplit_cloud.sessions import CloudSession
from iotsplit_cloud.training import TrainingRound

Activity = TrainingRound | EvaluationRound | Carried

REMIND_S = 20.0
"""A session that brings nothing for so long is told its assignment again: it may have been lost on its way."""


class Watch:
    """The rules by which sessions are moved and dropped.

    Args:
        members: who is there.
        fleet: how long is waited, and for whom.
        desk: writes the assignments.
        carried: takes sessions that are too late, if that is the fleet's policy.
    """

    def __init__(self, members: Members, fleet: FleetSettings, desk: Desk, carried: Carried) -> None:
        self._members, self._fleet, self._desk, self._carried = members, fleet, desk, carried

    def look(self, activity: Activity, now: float) -> list[Output]:
        """Move and drop what has to be."""
        said: list[Output] = []
        waits_for = set(activity.waits_for())
        for device, session in list(activity.sessions.items()):
            said += _remind(session, now)
            if session.unfit:
                said += self.drop(activity, device, f"refused: {session.unfit}", now)
            elif self._is_homeless(session, now) and (edge := self._edge_for(activity, session)):
                said.append(self._move(activity, session, edge, now))
            elif device in waits_for and self._is_too_slow(session, now):
                said += self._leave_behind(activity, device, self._reason(session, now), now)
        return said

    def _is_homeless(self, session: CloudSession, now: float) -> bool:
        edge, incarnation = session.assignment.edge, session.assignment.incarnation
        if not edge:
            return False  # it needs none
        restarted = edge in self._members and self._members.incarnation(edge) != incarnation
        return restarted or self._members.gone(edge, now)

    def _is_too_slow(self, session: CloudSession, now: float) -> bool:
        return self._is_over(session, now) and self._fleet.stragglers is not Stragglers.WAIT

    def _reason(self, session: CloudSession, now: float) -> str:
        if self._is_homeless(session, now) and not self._members.present(Tier.EDGE):
            return "no edge is left"
        for agent in filter(None, (session.assignment.device, session.assignment.edge)):
            if self._members.gone(agent, now):
                return f"{agent} is gone"
        return f"nothing came for {self._fleet.step_timeout:.0f} s"

    def _edge_for(self, activity: Activity, session: CloudSession) -> str | None:
        """An edge that has room; without one the session waits for one to come."""
        busy = Counter(each.assignment.edge for each in activity.sessions.values())
        busy[session.assignment.edge] -= 1
        return self._members.edge_with_room(busy)

    def _move(self, activity: Activity, session: CloudSession, edge: str, now: float) -> Assignment:
        moved = self._desk.move(session.assignment, edge, checkpoint=session.backup.newest(Tier.EDGE))
        activity.move(moved, now)
        return moved

    def _leave_behind(self, activity: Activity, device: str, reason: str, now: float) -> list[Output]:
        """Go on without a session that is too late; what it has done may count later.

        The last session of a round takes the round's work with it: there is nothing to carry it to.
        """
        done = len(activity.sessions[device].losses)
        carry = self._fleet.stragglers is Stragglers.CARRY and done and len(activity.sessions) > 1
        if not carry or not isinstance(activity, TrainingRound) or not activity.can_carry:
            return self.drop(activity, device, reason, now)
        session = activity.sessions[device]
        assignment = self._desk.move(
            session.assignment,
            session.assignment.edge,
            checkpoint=min(done, session.backup.newest(Tier.EDGE)),
            ends_at=done,
        )
        detail = f"after step {done}: {reason}"
        event = Event(kind="session_carried", agent=device, detail=detail)
        said = [event, assignment, *activity.drop(device, f"carried {detail}", now)]
        self._carried.take(session, assignment, now)
        return said

    def give_up_late(self, carried: Carried, now: float) -> list[Output]:
        """Give carried sessions up: nobody else is left for a round that they could count in."""
        over = [device for device, session in carried.sessions.items() if self._is_over(session, now)]
        return [each for device in over for each in self.drop(carried, device, "nobody else is left", now)]

    def _is_over(self, session: CloudSession, now: float) -> bool:
        return now - session.progress_at > self._fleet.step_timeout

    def drop(self, activity: Activity, device: str, reason: str, now: float) -> list[Output]:
        """Go on without a session."""
        return [
            Event(kind="session_dropped", agent=device, detail=reason),
            self._desk.rest(device),
            *activity.drop(device, reason, now),
        ]


def _remind(session: CloudSession, now: float) -> list[Output]:
    if not session.awaited or now - max(session.progress_at, session.reminded_at) < REMIND_S:
        return []
    session.reminded_at = now
    return [session.assignment]
