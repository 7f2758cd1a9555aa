"""What a check of a broker comes to, point by point; pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Figure = int | float | bool | str | None | list[str]
KIB, MIB = 1024, 1024 * 1024


class Verdict(StrEnum):
    """What a point comes to."""

    OK = "ok"
    TOO_SMALL = "too small"
    SLOW = "slow"
    FLATTENED = "flattened"
    ABSENT = "absent"
    CROSSES = "crosses"
    UNKNOWN = "not tested"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One point with its verdict.

    Args:
        point: its name.
        verdict: what it comes to.
        needed: fleets do not work without it.
        said: what was measured, for people.
        measured: the same as figures, units in their names.
        fixes: setting to change, by the name of who has it (mosquitto, emqx, hivemq, agents).
    """

    point: str
    verdict: Verdict
    needed: bool
    said: str
    measured: Mapping[str, Figure] = field(default_factory=dict)
    fixes: Mapping[str, str] = field(default_factory=dict)

    @property
    def fails(self) -> bool:
        """Whether a fleet cannot work here because of it."""
        return self.needed and self.verdict is not Verdict.OK


def untested(point: str, reason: str, *, needed: bool = True) -> Finding:
    """A point that could not be looked at, which is a failure where it is needed: nobody knows."""
    return Finding(point=point, verdict=Verdict.UNKNOWN, needed=needed, said=reason)


def kib(size_bytes: int) -> str:
    """A size for people."""
    return f"{size_bytes / KIB:.4g} KiB" if size_bytes < MIB else f"{size_bytes / MIB:.4g} MiB"
