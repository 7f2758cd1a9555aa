"""What ``iotsplit broker check`` has seen at a broker, and what each point of it means; pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from iotsplit_broker.checking import advice
from iotsplit_broker.checking.findings import MIB, Figure, Finding, Verdict, kib

LEAST_QUEUE = 200  # below it, one step of a few devices may already overflow the queue of an edge
LEAST_WINDOW = 32  # topics of one adapter version or checkpoint that an agent asks for at a time
DELAY_MS = 25.0  # TCP's timers wait for 40 ms or 88 ms; a busy machine's jitter is below this
LEAST_MIB_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Which MQTT is spoken; 3.1.1 is, or there would be no check.

    Args:
        version5: MQTT 5 is spoken too.
        announced: what the broker says of itself in the CONNACK of MQTT 5.
    """

    version5: bool
    announced: Mapping[str, Figure]


def judge_versions(seen: Versions) -> Finding:
    """Agents speak 3.1.1; 5 only helps bridges to keep retain flags."""
    said = "3.1.1 and 5" if seen.version5 else "3.1.1; not 5, which agents do not need"
    return Finding(
        point="versions",
        verdict=Verdict.OK if seen.version5 else Verdict.ABSENT,
        needed=False,
        said=said,
        measured={"mqtt5": seen.version5, **seen.announced},
    )


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Sizes of messages that come back, in bytes.

    Args:
        needed_bytes: what agents send at most (``--chunk-bytes``).
        largest_bytes: largest that came back; 0 if none did.
        refused_bytes: smallest that did not; None if none was refused.
    """

    needed_bytes: int
    largest_bytes: int
    refused_bytes: int | None


def judge_payload(seen: Payload) -> Finding:
    """Agents' chunks must pass."""
    fits = seen.largest_bytes >= seen.needed_bytes
    more = " and more" if seen.refused_bytes is None else f"; not {kib(seen.refused_bytes)}"
    return Finding(
        point="payload",
        verdict=Verdict.OK if fits else Verdict.TOO_SMALL if seen.largest_bytes else Verdict.ABSENT,
        needed=True,
        said=f"{kib(seen.largest_bytes)}{more} (agents send {kib(seen.needed_bytes)})",
        measured={
            "largest_bytes": seen.largest_bytes,
            "refused_bytes": seen.refused_bytes,
            "needed_bytes": seen.needed_bytes,
        },
        fixes={} if fits else advice.payload(seen.needed_bytes, seen.largest_bytes),
    )


@dataclass(frozen=True, kw_only=True)
class Retained:
    """What a later subscriber is given.

    Args:
        kept: a retained message, marked as such.
        whole: also one of ``--chunk-bytes``.
        replaced: only the last of two on one topic.
        by_wildcard: also by a filter with ``+``.
        cleared: nothing after an empty one.
    """

    kept: bool
    whole: bool
    replaced: bool
    by_wildcard: bool
    cleared: bool


def judge_retained(seen: Retained) -> Finding:
    """Adapter versions, assignments and states are retained messages."""
    parts = {
        "set": seen.kept,
        "a whole chunk": seen.whole,
        "replace": seen.replaced,
        "wildcard": seen.by_wildcard,
        "clear": seen.cleared,
    }
    missing = [name for name, there in parts.items() if not there]
    working = ", ".join(name for name in parts if name not in missing)
    return Finding(
        point="retained",
        verdict=Verdict.ABSENT if missing else Verdict.OK,
        needed=True,
        said=working if not missing else f"not: {', '.join(missing)}" + (f"; {working}" if working else ""),
        measured={name.replace(" ", "_"): there for name, there in parts.items()},
        fixes=advice.RETAINED if missing else {},
    )


@dataclass(frozen=True, kw_only=True)
class ManyRetained:
    """Many retained topics at once.

    Args:
        sent: retained messages that there are.
        by_wildcard: how many one wildcard subscription was given.
        asked: how many were subscribed to by name, at one time.
        by_name: how many of those came.
    """

    sent: int
    by_wildcard: int
    asked: int
    by_name: int


def judge_many_retained(seen: ManyRetained) -> Finding:
    """Agents fetch in windows by name; a wildcard that drops some limits a fleet's size."""
    said = f"{seen.by_wildcard} of {seen.sent} by one wildcard, {seen.by_name} of {seen.asked} by name"
    measured: dict[str, Figure] = {
        "sent": seen.sent,
        "by_wildcard": seen.by_wildcard,
        "asked_by_name": seen.asked,
        "by_name": seen.by_name,
    }
    windows = seen.by_name >= min(seen.asked, LEAST_WINDOW)
    there = windows and seen.by_wildcard >= seen.sent
    if windows and not there:
        said += f": enough for a fleet of fewer than {seen.by_wildcard} agents"
    some = seen.by_wildcard or seen.by_name
    return Finding(
        point="many retained",
        verdict=Verdict.OK if there else Verdict.TOO_SMALL if some else Verdict.ABSENT,
        needed=not windows,
        said=said,
        measured=measured,
        fixes={} if there else advice.MANY_RETAINED,
    )


@dataclass(frozen=True, kw_only=True)
class Will:
    """What became of a last will when the socket was cut.

    Args:
        let_in: a client with a retained will is accepted.
        after_s: seconds until it was heard; None if it was not.
        kept: a later subscriber was given it as a retained message.
    """

    let_in: bool
    after_s: float | None
    kept: bool


def judge_will(seen: Will) -> Finding:
    """Death is noticed by it at once, and by silence only after half a minute."""
    there = seen.after_s is not None and seen.kept
    heard = "not heard" if seen.after_s is None else f"heard {seen.after_s:.2f} s after the socket was cut"
    return Finding(
        point="last will",
        verdict=Verdict.OK if there else Verdict.ABSENT,
        needed=True,
        said=f"{heard}, {'retained' if seen.kept else 'not retained'}"
        if seen.let_in
        else "a client with a retained will is not let in",
        measured={"after_s": seen.after_s, "retained": seen.kept},
        fixes={} if there else advice.WILL,
    )


@dataclass(frozen=True, kw_only=True)
class Qos:
    """QoS of a message that was published and subscribed to with 1.

    Args:
        acknowledged: the broker said that it has it.
        granted: QoS of the subscription.
        delivered: QoS on arrival; None if it did not arrive.
        foreign: messages that came before it, of topics that were not subscribed to.
    """

    acknowledged: bool
    granted: int
    delivered: int | None
    foreign: int = 0


def judge_qos(seen: Qos) -> Finding:
    """Both ways have to be acknowledged, or a broken connection loses what was on its way."""
    there = seen.acknowledged and seen.delivered == 1 and not seen.foreign
    arrived = "nothing arrived" if seen.delivered is None else f"delivered with QoS {seen.delivered}"
    flat = seen.delivered == 0
    return Finding(
        point="QoS 1",
        verdict=Verdict.OK if there else Verdict.FLATTENED if flat else Verdict.ABSENT,
        needed=True,
        said=f"{'acknowledged' if seen.acknowledged else 'not acknowledged'}, {arrived}"
        + (f", with {seen.foreign} messages that nobody subscribed to" if seen.foreign else ""),
        measured={
            "acknowledged": seen.acknowledged,
            "granted": seen.granted,
            "delivered": seen.delivered,
            "foreign": seen.foreign,
        },
        fixes={} if there or seen.foreign else advice.QOS,
    )


@dataclass(frozen=True, kw_only=True)
class Takeover:
    """What became of two clients of one id.

    Args:
        first_ended: the earlier one was thrown out.
        second_works: the later one is served.
    """

    first_ended: bool
    second_works: bool


def judge_takeover(seen: Takeover) -> Finding:
    """An agent that lost its connection unnoticed has to get in again."""
    first = "the earlier client is thrown out" if seen.first_ended else "the earlier client stays"
    second = "the later is served" if seen.second_works else "the later is not served"
    there = seen.first_ended and seen.second_works
    return Finding(
        point="takeover",
        verdict=Verdict.OK if there else Verdict.ABSENT,
        # A namesake that stays is found out by the agents themselves; one that cannot come back is lost.
        needed=not seen.second_works,
        said=f"{first}, {second}",
        measured={"first_ended": seen.first_ended, "second_works": seen.second_works},
        fixes={} if there else advice.TAKEOVER,
    )


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Messages for a subscriber that takes none for a while, all QoS 1.

    Args:
        sent: published.
        acknowledged: of those, by the broker.
        delivered: different ones that came when the subscriber went on.
    """

    sent: int
    acknowledged: int
    delivered: int


def judge_queue(seen: Queue) -> Finding:
    """What is acknowledged and then dropped has to be asked for again, which costs time."""
    lost = max(0, seen.acknowledged - seen.delivered)
    return Finding(
        point="queue",
        verdict=_of_queue(seen, lost),
        needed=seen.delivered < LEAST_QUEUE,
        said=f"{seen.delivered} of {seen.acknowledged} acknowledged messages reach a slow subscriber"
        + (f", {lost} are dropped" if lost else "")
        + (f" ({seen.sent} were sent)" if seen.sent > seen.acknowledged else ""),
        measured={"sent": seen.sent, "acknowledged": seen.acknowledged, "delivered": seen.delivered},
        fixes=advice.QUEUE if lost else {},
    )


def _of_queue(seen: Queue, lost: int) -> Verdict:
    if not seen.acknowledged:
        return Verdict.ABSENT
    return Verdict.TOO_SMALL if lost else Verdict.OK


@dataclass(frozen=True, kw_only=True)
class Trip:
    """Medians of round trips, in milliseconds.

    Args:
        agent_ms: QoS 1, as agents do it.
        pair_ms: two small messages of QoS 0, to a client that leaves TCP's acknowledgements to its kernel.
        network_ms: of TCP alone.
    """

    agent_ms: float
    pair_ms: float
    network_ms: float


def judge_trip(seen: Trip) -> Finding:
    """Nagle's algorithm at the broker, and what else is slow."""
    delayed = seen.pair_ms - seen.agent_ms >= DELAY_MS
    slow = seen.agent_ms - seen.network_ms >= DELAY_MS
    said = f"{seen.agent_ms:.1f} ms for agents, {seen.pair_ms:.1f} ms for two messages at once to other clients"
    if delayed:
        said += ": the broker waits for TCP's timers (Nagle's algorithm)"
    elif slow:
        said += f", though the network takes {seen.network_ms:.1f} ms"
    return Finding(
        point="round trip",
        verdict=Verdict.SLOW if delayed or slow else Verdict.OK,
        needed=False,
        said=said,
        measured={"agent_ms": seen.agent_ms, "pair_ms": seen.pair_ms, "network_ms": seen.network_ms},
        fixes=advice.TRIP if delayed or slow else {},
    )


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Messages of ``--chunk-bytes`` that one agent sent to itself.

    Args:
        message_bytes: size of each.
        sent: published.
        arrived: came back.
        seconds: from the first to the last.
    """

    message_bytes: int
    sent: int
    arrived: int
    seconds: float


def judge_speed(seen: Speed) -> Finding:
    """How fast tensors can go, there and back at once."""
    mib_s = seen.arrived * seen.message_bytes / MIB / seen.seconds if seen.seconds else 0.0
    lost = seen.sent - seen.arrived
    slow = mib_s < LEAST_MIB_S
    return Finding(
        point="speed",
        verdict=Verdict.SLOW if slow else Verdict.TOO_SMALL if lost else Verdict.OK,
        needed=False,
        said=f"{mib_s:.1f} MiB/s there and back" + (f", {lost} of {seen.sent} messages lost" if lost else ""),
        measured={
            "mib_per_s": round(mib_s, 2),
            "message_bytes": seen.message_bytes,
            "sent": seen.sent,
            "arrived": seen.arrived,
        },
        fixes=advice.QUEUE if lost else advice.SPEED if slow else {},
    )
