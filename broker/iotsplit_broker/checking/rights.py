"""Which of a fleet's topics a user may write and read, and which roles that is enough for; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from iotsplit.runtime.memory import matches
from iotsplit.topics import Topics
from iotsplit_broker.checking.findings import Figure, Finding, Verdict
from iotsplit_broker.configuration.access import ROLES, Rule
from iotsplit_broker.configuration.mosquitto_acl import acl_lines

REFUSED = 0x80  # codes of MQTT from here on are refusals


class Role(StrEnum):
    """Whose rights are wanted."""

    DEVICE = "device"
    EDGE = "edge"
    CLOUD = "cloud"
    ANY = "any"


TIERS = (Role.DEVICE, Role.EDGE, Role.CLOUD)
# What is said where by whom ({me}); writer and reader of each topic are one, so that it comes back.
PATHS = {
    "state": "state/{me}",
    "round": "round",
    "assign": "assign/{me}",
    "lan": "lan/{me}/{me}/check",
    "wan": "wan/{me}/{me}/check",
    "update": "update/{me}/check/device",
    "edge_update": "update/{me}/check/edge",
    "adapter": "adapter/check/0",
    "adapter_head": "adapter/check/head",
    "checkpoint": "checkpoint/{me}/check/0",
    "metrics": "metrics/{me}",
    "events": "events",
    "command": "command",
    "reply": "command/{me}",
    "probe": "probe/{me}",
}


def allowing(rules: Sequence[Rule], action: str, path: str) -> list[Rule]:
    """Those of the rules that allow one to ``write`` or ``read`` a path, which names its user as they do."""
    able = (rule for rule in rules if (rule.access.writes if action == "write" else rule.access.reads))
    return [rule for rule in able if matches(rule.path, path)]


def _names(role: Role, action: str) -> frozenset[str]:
    return frozenset(name for name, path in PATHS.items() if allowing(ROLES[role], action, path))


WRITES: Mapping[Role, frozenset[str]] = {role: _names(role, "write") for role in TIERS}
READS: Mapping[Role, frozenset[str]] = {role: _names(role, "read") for role in TIERS}


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


def judge_rights(seen: Mapping[str, Access], wanted: Role, topics: Topics, user: str) -> Finding:
    """Which roles the user may play; it fails if `wanted` is not among them.

    Args:
        seen: by the names of `PATHS`.
        wanted: the role, or ANY if one of them is enough.
        topics: of the fleet.
        user: its name.
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
        fixes={} if fits else {"mosquitto": f"in acl_file: {_lines(asked, missing[asked], topics, user)}"},
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


def _lines(role: Role, missing: Sequence[tuple[str, str]], topics: Topics, user: str) -> str:
    wanted = [rule for action, what in missing for rule in allowing(ROLES[role], action, PATHS[what])]
    return "; ".join(acl_lines(list(dict.fromkeys(wanted)), topics, user))


def _said(
    able: Sequence[str], missing: Mapping[Role, list[tuple[str, str]]], asked: Role, *, fits: bool
) -> str:
    enough = f"enough for {', '.join(able)}" if able else "enough for no role"
    if not fits:
        return f"{enough}; as {asked} it may not {_list(missing[asked])}"
    lacking = [f"not as {role}: {_list(pairs)}" for role, pairs in missing.items() if pairs]
    return "; ".join([enough, *lacking])


def _list(pairs: Sequence[tuple[str, str]]) -> str:
    by_action = {
        action: [name.replace("_", " ") for each, name in pairs if each == action]
        for action in ("write", "read")
    }
    return " nor ".join(f"{action} {', '.join(names)}" for action, names in by_action.items() if names)
