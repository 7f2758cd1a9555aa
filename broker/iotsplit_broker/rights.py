"""Which of a fleet's topics a user may write and read, and which roles that is enough for; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from iotsplit_broker.findings import Figure, Finding, Verdict

REFUSED = 0x80  # codes of MQTT from here on are refusals


class Role(StrEnum):
    """Whose rights are wanted."""

    DEVICE = "device"
    EDGE = "edge"
    CLOUD = "cloud"
    ANY = "any"


# What is said where by whom ({me}); writer and reader of each topic are one, so that it comes back.
PATHS = {
    "state": "state/{me}",
    "round": "round",
    "assign": "assign/{me}",
    "lan": "lan/{me}/{me}/check",
    "wan": "wan/{me}/{me}/check",
    "update": "update/{me}/check/device",
    "adapter": "adapter/check/0",
    "checkpoint": "checkpoint/{me}/check/0",
    "metrics": "metrics/{me}",
    "events": "events",
    "command": "command",
    "reply": "command/{me}",
    "probe": "probe/{me}",
}
WRITES: Mapping[Role, frozenset[str]] = {
    Role.DEVICE: frozenset({"state", "lan", "update", "metrics", "probe"}),
    Role.EDGE: frozenset({"state", "lan", "wan", "update", "checkpoint", "metrics", "probe"}),
    Role.CLOUD: frozenset(
        {"state", "round", "assign", "wan", "adapter", "metrics", "events", "reply", "probe"}
    ),
}
READS: Mapping[Role, frozenset[str]] = {
    Role.DEVICE: frozenset({"state", "assign", "lan", "adapter", "probe"}),
    Role.EDGE: frozenset({"state", "assign", "lan", "wan", "adapter", "checkpoint", "probe"}),
    Role.CLOUD: frozenset({"state", "wan", "update", "adapter", "metrics", "command", "probe"}),
}
# The filters and topics behind the same names, as access rules write them; %u is the user.
RULES: Mapping[str, tuple[str, str]] = {
    "state": ("state/%u", "state/+"),
    "round": ("round", "round"),
    "assign": ("assign/+", "assign/+"),
    "lan": ("lan/+/%u/#", "lan/%u/#"),
    "wan": ("wan/+/%u/#", "wan/%u/#"),
    "update": ("update/#", "update/#"),
    "adapter": ("adapter/#", "adapter/#"),
    "checkpoint": ("checkpoint/#", "checkpoint/#"),
    "metrics": ("metrics/%u", "metrics/+"),
    "events": ("events", "events"),
    "command": ("command", "command"),
    "reply": ("command/+", "command/+"),
    "probe": ("probe/%u/#", "probe/%u/#"),
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a user may do with one topic; None where nothing shows it.

    Args:
        write: it may publish there.
        read: it is given what is published there.
    """

    write: bool | None
    read: bool | None


def access_of(*, code: int | None, echoed: bool, heard: bool, subscribed: bool, honest: bool) -> Access:
    """What follows from one message that was published on a topic that we subscribe to.

    Args:
        code: of its acknowledgement; None if there was none.
        echoed: it came back.
        heard: something arrived on the topic, perhaps another's.
        subscribed: the broker accepted the subscription.
        honest: an acknowledgement tells whether the message was allowed (MQTT 5).
    """
    told = code is not None and code < REFUSED
    write = True if echoed else told if honest or not told else None
    read = True if heard else False if write or not subscribed else None
    return Access(write=write, read=read)


def judge_rights(seen: Mapping[str, Access], wanted: Role, root: str) -> Finding:
    """Which roles the user may play; it fails if `wanted` is not among them.

    Args:
        seen: by the names of `PATHS`.
        wanted: the role, or ANY if one of them is enough.
        root: what the fleet's topics begin with.
    """
    missing = {role: lacks(seen, role) for role in WRITES}
    able = [str(role) for role in WRITES if not missing[role]]
    fits = wanted in able or (wanted is Role.ANY and bool(able))
    shortest = min(WRITES, key=lambda role: len(missing[role]))
    asked = shortest if wanted is Role.ANY else wanted
    measured: dict[str, Figure] = {"roles": able}
    for name, access in seen.items():
        measured[f"{name}_write"], measured[f"{name}_read"] = access.write, access.read
    return Finding(
        point="rights",
        verdict=Verdict.OK if fits else Verdict.ABSENT,
        needed=True,
        said=_said(able, missing, asked, fits=fits),
        measured=measured,
        fixes={} if fits else {"mosquitto": f"in acl_file: {'; '.join(rules(missing[asked], root))}"},
    )


def lacks(seen: Mapping[str, Access], role: Role) -> list[tuple[str, str]]:
    """Pairs of ``write`` or ``read`` and a topic's name that a role needs and the user has not."""
    found = [("write", name) for name in sorted(WRITES[role]) if seen[name].write is False]
    for name in sorted(READS[role]):
        both = name in WRITES[role]
        # Where nothing shows which of the two is forbidden, one of them is.
        if seen[name].read is False or (both and seen[name].read is None and seen[name].write is None):
            found.append(("read", name))
    return found


def rules(missing: Sequence[tuple[str, str]], root: str) -> list[str]:
    """Lines of a Mosquitto ACL file that allow it."""
    lines = []
    for action, name in missing:
        path = RULES[name][action == "read"]
        lines.append(f"{'pattern' if '%u' in path else 'topic'} {action} {root}{path}")
    return lines


def _said(
    able: Sequence[str], missing: Mapping[Role, list[tuple[str, str]]], asked: Role, *, fits: bool
) -> str:
    enough = f"enough for {', '.join(able)}" if able else "enough for no role"
    if not fits:
        return f"{enough}; as {asked} it may not {_list(missing[asked])}"
    lacking = [f"not as {role}: {_list(pairs)}" for role, pairs in missing.items() if pairs]
    return "; ".join([enough, *lacking])


def _list(pairs: Sequence[tuple[str, str]]) -> str:
    by_action = {action: [name for each, name in pairs if each == action] for action in ("write", "read")}
    return " nor ".join(f"{action} {', '.join(names)}" for action, names in by_action.items() if names)
