"""What counts and what was applied: at the end of a round nothing is lost and nothing came twice. Pure."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Ledger:
    """Which steps of which sessions count, and which were applied to the cloud's parameters."""

    expected: int = 0
    applied: set[tuple[str, int]] = field(default_factory=set)
    duplicated: int = 0

    def apply(self, session: str, step: int) -> None:
        """Enter one session's step."""
        self.duplicated += (session, step) in self.applied
        self.applied.add((session, step))

    def rewind(self, session: str, step: int) -> int:
        """Strike out a session's steps from one on: their effect is gone; gives their number."""
        gone = {(name, at) for name, at in self.applied if name == session and at >= step}
        self.applied -= gone
        return len(gone)

    @property
    def lost(self) -> int:
        """Steps that should have been applied and were not."""
        return self.expected - len(self.applied)
