"""What a bridge between two brokers makes of a fleet's messages; pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from iotsplit_broker.checking import advice
from iotsplit_broker.checking.findings import Figure, Finding, Verdict


@dataclass(frozen=True, kw_only=True)
class Way:
    """One kind of message that a bridge carries, or must not.

    Args:
        name: such as ``wan up``; up is from the shop floor's broker to the other.
        path: below the root; {me} and {peer} are names of our own.
        retained: published as retained.
        up: direction.
        wanted: fleets need it on the other side.
    """

    name: str
    path: str
    retained: bool = False
    up: bool = True
    wanted: bool = True


WAYS = (
    Way(name="wan up", path="wan/{peer}/{me}/check"),
    Way(name="update up", path="update/{me}/check/device"),
    Way(name="state up", path="state/{me}", retained=True),
    Way(name="wan down", path="wan/{me}/{peer}/check", up=False),
    Way(name="assign down", path="assign/{me}", retained=True, up=False),
    Way(name="adapter down", path="adapter/{me}/check", retained=True, up=False),
    Way(name="lan up", path="lan/{peer}/{me}/check", wanted=False),
    Way(name="checkpoint up", path="checkpoint/{me}/check/0", wanted=False),
)


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """What came of one message.

    Args:
        way: what it was.
        whole: it arrived with all its bytes.
        qos: on arrival; None if it did not arrive. It was published and subscribed to with 1.
        kept: a later subscriber on the other side was given it as retained.
    """

    way: Way
    whole: bool = False
    qos: int | None = None
    kept: bool = False


def judge_crossing(seen: Sequence[Crossed]) -> list[Finding]:
    """Whether a fleet can lie on both sides, and whether what is the shop floor's stays there."""
    wanted = [each for each in seen if each.way.wanted]
    missing = [each.way.name for each in wanted if each.qos is None or not each.whole]
    flattened = [each.way.name for each in wanted if each.qos == 0]
    forgotten = [
        each.way.name for each in wanted if each.way.retained and each.qos is not None and not each.kept
    ]
    said = [
        f"{what}: {', '.join(names)}"
        for what, names in (
            ("not across", missing),
            ("QoS 1 becomes 0", flattened),
            ("not retained there", forgotten),
        )
        if names
    ]
    verdict = Verdict.ABSENT if missing else Verdict.FLATTENED if said else Verdict.OK
    bridge = Finding(
        point="bridge",
        verdict=verdict,
        needed=True,
        said="; ".join(said) or f"{len(wanted)} kinds of message cross, with QoS 1 and retained as they were",
        measured=_figures(wanted),
        fixes=advice.BRIDGE if said else {},
    )
    return [bridge, _privacy([each for each in seen if not each.way.wanted])]


def _privacy(unwanted: Sequence[Crossed]) -> Finding:
    names = [each.way.name for each in unwanted if each.qos is not None]
    return Finding(
        point="bridge privacy",
        verdict=Verdict.CROSSES if names else Verdict.OK,
        needed=False,
        said=f"crosses and need not: {', '.join(names)}" if names else "lan and checkpoints stay on their side",
        measured=_figures(unwanted),
        fixes=advice.PRIVACY if names else {},
    )


def _figures(seen: Sequence[Crossed]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for each in seen:
        name = each.way.name.replace(" ", "_")
        figures[f"{name}_qos"] = each.qos
        if each.way.retained:
            figures[f"{name}_retained"] = each.kept
    return figures
