"""What a bridge between two sites carries, which way, and why; everything else stays where it was said."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from iotsplit_broker.configuration.access import Access, Rule


class Way(StrEnum):
    """Which way, seen from the site with the devices, in Mosquitto's words."""

    OUT = "out"
    IN = "in"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Crossing:
    """Topics that cross.

    Args:
        path: filter below the fleet's root.
        way: where to.
        why: who needs it there.
        qos: largest quality of service that is kept.
    """

    path: str
    way: Way
    why: str
    qos: int = 1


def crossings(
    *, cloud: str = "cloud", edges: Sequence[str] = (), standby: Sequence[str] = ()
) -> tuple[Crossing, ...]:
    """What crosses between the site with devices and edges and the one with the cloud.

    No two of them go opposite ways on one topic, but for checkpoints with a standby, so nothing can go round.

    Args:
        cloud: the cloud's agent id.
        edges: edges of this site; when none is named, what the cloud says to any edge comes in.
        standby: edges on the far side that take over when all of this site are lost.
    """
    told = [Crossing(f"wan/{edge}/{cloud}/+", Way.IN, "the cloud's gradients") for edge in edges or ("+",)]
    return (
        Crossing("state/+", Way.OUT, "the cloud learns who is there, and who died"),
        Crossing("metrics/+", Way.OUT, "the cloud takes an agent that is silent for 30 s for lost", qos=0),
        Crossing(f"wan/{cloud}/+/+", Way.OUT, "the edges' activations"),
        *told,
        Crossing("update/+/+/+", Way.OUT, "what was trained, at the end of a round"),
        Crossing("assign/+", Way.IN, "who trains with whom, on what"),
        Crossing("round", Way.IN, "where the fleet is, for people"),
        Crossing("adapter/#", Way.IN, "adapter versions: agents start from them"),
        Crossing("events", Way.IN, "what happened, for people; only the cloud says it"),
        Crossing("command", Way.OUT, "people here command the cloud"),
        Crossing("command/+", Way.IN, "its replies"),
        *_for_standby(standby),
    )


def _for_standby(standby: Sequence[str]) -> list[Crossing]:
    found = []
    for edge in standby:
        found.append(Crossing(f"lan/{edge}/+/+", Way.OUT, f"devices' activations to the standby {edge}"))
        found.append(Crossing(f"lan/+/{edge}/+", Way.IN, f"gradients of the standby {edge}"))
    if standby:
        found.append(Crossing("checkpoint/+/+/+", Way.BOTH, "the standby goes on from them, and back"))
    return found


def bridge_rules(carried: Sequence[Crossing]) -> tuple[Rule, ...]:
    """What a bridge's user may do on the far side."""
    access = {Way.OUT: Access.WRITE, Way.IN: Access.READ, Way.BOTH: Access.BOTH}
    retained = {"state", "checkpoint"}
    return tuple(
        Rule(access[each.way], each.path, retained=each.path.partition("/")[0] in retained) for each in carried
    )


def price_of_standby(standby: Sequence[str]) -> tuple[str, ...]:
    """What a standby on the far side costs, for people; nothing without one."""
    if not standby:
        return ()
    names = ", ".join(standby)
    return (
        f"privacy: while {names} stands in, lan crosses: the devices' first hidden states say much of a text.",
        "privacy: checkpoints cross all the time: LoRA parameters and optimizer of each device's session.",
        "bytes: 12 for each LoRA parameter of the edge (AdamW), per device, every --checkpoint-every steps.",
        "bytes: while the standby stands in, lan crosses instead of wan: the same again.",
    )
