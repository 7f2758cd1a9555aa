"""What counts and what was applied: at the end of a round nothing is lost and nothing came twice. Pure."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Ledger:
    """Which steps of which sessions count, and which were applied to the cloud's parameters."""

    expected: int = 0
    duplicated: int = 0
    _applied: dict[str, set[int]] = field(default_factory=dict)  # by session, of the round at hand
    _settled: int = 0  # applied in rounds that are over

    def apply(self, session: str, step: int) -> None:
        """Enter one session's step."""
        steps = self._applied.setdefault(session, set())
        self.duplicated += step in steps
        steps.add(step)

    def rewind(self, session: str, step: int) -> None:
        """The session stands before a step again: those before it count as applied, the others do not."""
        self._applied[session] = set(range(step))

    def steps(self, session: str) -> int:
        """How many steps of a session were applied."""
        return len(self._applied.get(session, ()))

    def settle(self) -> None:
        """The round is over: of its sessions only the number of steps is remembered."""
        self._settled = self.applied
        self._applied.clear()

    @property
    def applied(self) -> int:
        """Steps that were applied."""
        return self._settled + sum(len(steps) for steps in self._applied.values())

    @property
    def lost(self) -> int:
        """Steps that should have been applied and were not."""
        return self.expected - self.applied
