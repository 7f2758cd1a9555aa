"""Who is in the fleet: births, last wills, heartbeats, and who had to be refused. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from iotsplit.errors import MalformedMessageError
from iotsplit.plan import PartPlan, Tier
from iotsplit.states import MAX_AGENTS, PROTOCOL_VERSION, Birth

SILENCE_S = 30.0
"""An agent that has not been heard for so long is gone; heartbeats come every five seconds."""
GRACE_S = 3.0
"""A connection that was lost may come back for so long before its sessions go elsewhere."""
OPENING_S = 15.0
"""A cloud that has started waits so long for agents that it has not heard of yet."""


@dataclass(slots=True)
class Member:
    """An agent as the cloud last heard of it, in the runner's seconds."""

    birth: Birth
    heard_at: float
    lost_at: float | None = None


class Members:
    """The cloud's picture of its fleet.

    Args:
        model: fingerprint of the fleet's model.
        plans: layers that each tier needs.
    """

    def __init__(self, *, model: str, plans: dict[Tier, PartPlan]) -> None:
        self._model = model
        self._plans = plans
        self._members: dict[str, Member] = {}
        self.opened_at = 0.0
        """When the cloud began to listen, in the runner's seconds."""

    def __getitem__(self, agent: str) -> Member:
        return self._members[agent]

    def __contains__(self, agent: str) -> bool:
        return agent in self._members

    def all(self) -> list[Member]:
        """Everyone ever heard of, by id."""
        return [self._members[agent] for agent in sorted(self._members)]

    def heard(self, agent: str, now: float) -> bool:
        """Note a sign of life; true if the agent was thought lost."""
        member = self._members.get(agent)
        if member is None or not member.birth.online:
            return False
        was_lost, member.lost_at, member.heard_at = member.lost_at is not None, None, now
        return was_lost

    def take(self, birth: Birth, now: float) -> str:
        """Take a state message; return what it means: `joined`, `restarted`, `back`, `lost`, or nothing.

        A last will can overtake a birth: the state of an older incarnation says nothing.

        Raises:
            MalformedMessageError: one agent more than are remembered.
        """
        member = self._members.get(birth.agent)
        if member is not None and birth.incarnation < member.birth.incarnation:
            return ""
        if not birth.online:
            return self._lose(member, birth, now)
        if member is None and len(self._members) >= MAX_AGENTS:
            raise MalformedMessageError(f"more than {MAX_AGENTS} agents")
        self._members[birth.agent] = Member(birth, now)
        if member is None:
            return "joined"
        if birth.incarnation > member.birth.incarnation:
            return "restarted"
        return "back" if member.lost_at is not None else ""

    def _lose(self, member: Member | None, birth: Birth, now: float) -> str:
        if member is None or member.lost_at is not None or not member.birth.online:
            return ""
        member.lost_at = now
        member.birth = birth if birth.problem else member.birth
        return "lost"

    def silent(self, now: float) -> list[str]:
        """Notice agents that have stopped talking; each once."""
        found = []
        for agent, member in sorted(self._members.items()):
            if member.lost_at is None and now - member.heard_at > SILENCE_S:
                member.lost_at = now
                found.append(agent)
        return found

    def gone(self, agent: str, now: float) -> bool:
        """Whether sessions of the agent cannot go on."""
        member = self._members.get(agent)
        if member is None:
            return now - self.opened_at >= OPENING_S
        return member.lost_at is not None and now - member.lost_at >= GRACE_S

    def incarnation(self, agent: str) -> int:
        """The incarnation of an agent; 0 if it was never there."""
        member = self._members.get(agent)
        return 0 if member is None else member.birth.incarnation

    def present(self, tier: Tier) -> list[str]:
        """Ids of the agents of a tier that can work now."""
        return [
            agent
            for agent, member in sorted(self._members.items())
            if member.birth.role is tier and member.lost_at is None and not self.refusal(member.birth)
        ]

    def edges(self, *, standby: bool) -> list[str]:
        """Ids of the edges that rounds are dealt to.

        Args:
            standby: whether those on standby count when there is no other.
        """
        there = self.present(Tier.EDGE)
        regular = [edge for edge in there if not self._members[edge].birth.standby]
        return there if standby and not regular else regular

    def rooms(self) -> dict[str, int]:
        """Most sessions of each edge that has said so."""
        births = [self._members[edge].birth for edge in self.present(Tier.EDGE)]
        return {birth.agent: birth.max_sessions for birth in births if birth.max_sessions}

    def edge_with_room(self, busy: Mapping[str, int]) -> str | None:
        """The edge that a session goes to: the one with the fewest, one on standby only if no other has room.

        Args:
            busy: sessions of each edge.
        """
        rooms = self.rooms()
        free = [edge for edge in self.present(Tier.EDGE) if busy.get(edge, 0) < rooms.get(edge, MAX_AGENTS)]
        standby = {edge: self._members[edge].birth.standby for edge in free}
        return min(free, key=lambda edge: (standby[edge], busy.get(edge, 0), edge), default=None)

    def answering(self) -> set[str]:
        """Devices whose held-out data are answers to prompts."""
        births = [member.birth for member in self._members.values()]
        return {birth.agent for birth in births if birth.data is not None and birth.data.completions}

    def refusal(self, birth: Birth) -> str:
        """Why an agent cannot work in this fleet; empty if it can."""
        if birth.protocol != PROTOCOL_VERSION:
            return f"it speaks protocol {birth.protocol}, the cloud {PROTOCOL_VERSION}"
        if birth.model != self._model:
            return f"its model is {birth.model[:12] or 'unknown'}, the fleet's {self._model[:12]}"
        plan = self._plans[birth.role]
        if birth.part not in ("all", str(plan)):
            return f"its part holds layers {birth.part}, this fleet's {birth.role} needs {plan}"
        return ""
